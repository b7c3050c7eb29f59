"""Services for people and other programs, over HTTP.

`serving` serves an application on a socket, and `security` wraps every page on loopback.
`reward_server` says what a served reward model is asked and answers, `reward_app` serves it within
limits of size and time, and `RewardClient` is a reward function for TRL's trainers that asks it.
`annotate/` are the pages on which people vote: `app` has their routes, `voting` what they show and
send, `access` who may see what, `study` the database, `owner` the owner's page. `ui/` is the
browser of runs.
A new protocol is a function in `reward_server` and a route in `reward_app`.
"""
