"""Services for people and other programs, over HTTP.

`reward_server` says what a served reward model is asked and answers, `reward_app` serves it within
limits of size and time, and `RewardClient` is a reward function for TRL's trainers that asks it.
A new protocol is a function in `reward_server` and a route in `reward_app`. `ui` is the browser of
runs, and `security` what every page on loopback is wrapped in.
"""
