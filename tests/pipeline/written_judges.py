"""Methods whose judges learn, or whose pairs are by origin, written in the language."""

from __future__ import annotations

META_REWARDING = """\
name: meta-rewarding                 # arXiv 2407.19594; the seed stage is that of self-rewarding
models: {policy: {path: POLICY}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 4}
judges:
  - {id: self, kind: additive, by: policy, samples: 11, temperature: 0.8}
  - {id: meta, kind: judgements, of: self, by: policy}
  - {id: gold, kind: rules}
stages:
  - id: iterate
    rounds: 4
    at:
      "2-3": {steps.actor.tier: 0.32}
      "2": {steps.judging.max_chars: 1000}
      "4": {steps.actor.tier: 0.4}
    steps:
      - sample: {n: 7, prompts: 5, temperature: 0.8, top_p: 0.95}
      - judge: self
      - pair: {id: actor, strategy: length_tiered, tier: 0, uses: [self]}
      - judge: meta
        when: "1-2"
      - pair: {id: judging, of: self, better: meta, pick: highest_variance, max_chars: 1100}
        when: "1-2"
      - train: {id: dpo, uses: [actor, "judging?"], learning_rate: 5.0e-6}
      - evaluate: {judges: [gold]}
"""
SELF_REWARDING = """\
name: self-rewarding                 # arXiv 2401.10020
models: {policy: {path: POLICY}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 4}
judges:
  - {id: self, kind: additive, by: policy, samples: 3}
  - {id: gold, kind: rules}
stages:
  - id: seed
    steps:
      - load: {id: ift, type: demonstrations, path: demos.jsonl}
      - load: {id: ranked, type: pairs, path: pairs.jsonl, prompts: own}
      - judge: {id: self, uses: [ranked]}
      - filter:
          id: eft
          records: judgements
          uses: [self]
          filters: [{kind: agrees, with: ranked}, {kind: balance, by: score}]
      - train: {id: sft, method: sft, uses: [ift, eft], learning_rate: 5.5e-6}
      - evaluate: {judges: [gold, self], judged_by: sft}
  - id: iterate
    rounds: 2
    steps:
      - sample: {n: 4, prompts: 6, temperature: 0.7, top_p: 0.9}
      - judge: self
      - pair: {strategy: best_vs_worst}
      - train: {id: dpo, beta: 0.1}
      - evaluate: {against: [sft, previous], judges: [gold, self], judged_by: sft}
"""
CHARACTER = """\
name: character-training             # arXiv 2511.01689
models: {policy: {path: POLICY}, teacher: {path: POLICY, dtype: float32}}
allow_same_weights: true
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 4}
prompt_sets: {introspection: {path: red.jsonl}}
judges: [{id: traits, kind: yes_no, by: teacher}]
stages:
  - id: guided
    steps:
      - sample:
          id: in_character
          n: 1
          by: teacher
          system_prompt: {template: prompts/generate/character.j2}
      - sample: {id: plain, n: 1, by: policy}
      - pair: {chosen: in_character, rejected: plain}
      - train: {id: dpo, nll_weight: 0.1}
  - id: introspect
    prompts: introspection
    steps:
      - sample: {id: reflections, n: 4, system_prompt: {template: prompts/generate/reflect.j2}}
      - train: {id: final, method: sft, uses: [reflections]}
      - evaluate: {against: [initial, dpo], judges: [traits]}
"""
SELF_TAUGHT = """\
name: self-taught-evaluator          # arXiv 2408.02666
models: {policy: {path: POLICY}}
prompts: {holdout: 3}                # those of the pairs
judges:
  - {id: compare, kind: pairwise, by: policy, verdict: written}
  - {id: right, kind: verdict, of: compare}
stages:
  - id: iterate
    rounds: 2
    steps:
      - load: {id: changed, type: pairs, path: pairs.jsonl}   # the worse answers a changed question
      - questions: {id: cases, judge: compare, uses: [changed]}
      - sample: {id: tries, n: 8, prompts: cases, temperature: 0.7, top_p: 0.9}
      - judge: {id: right, uses: [tries]}
      - pair: {uses: [right], min_margin: 0.5}
      - train: {id: evaluator, beta: 0.1, nll_weight: 1.5, learning_rate: 5.5e-8}
      - bench: {judges: [compare], pairs: changed, by: [initial, evaluator]}
"""
SPCT = """\
name: spct                           # arXiv 2504.02495: scores of single answers
models: {policy: {path: POLICY}}
prompts: {holdout: 3}                # those of the labelled pairs
judges:
  - {id: critic, kind: additive, by: policy}
  - {id: right, kind: verdict, of: critic}
steps:
  - load: {id: labelled, type: pairs, path: pairs.jsonl}
  - questions: {id: cases, judge: critic, uses: [labelled]}
  - sample: {id: tries, n: 3, prompts: cases, temperature: 0.5}
  - judge: {id: right, uses: [tries]}
  - filter: {id: correct, records: completions, filters: [{kind: score, by: right, least: 1}]}
  - train: {id: cold, method: sft, uses: [correct], learning_rate: 5.0e-6}
  - train: {id: critic_rl, method: grpo, prompts: cases, n: 4, rewards: {right: 1}, beta: 0.08}
  - bench: {judges: [critic], pairs: labelled, by: [initial, cold, critic_rl]}
"""
GENRM = """\
name: genrm                          # arXiv 2408.15240: a verifier by next-token prediction
models: {policy: {path: POLICY}}
constitution: correct.yaml           # a rule that knows the answer, and the question
prompts: {path: problems.jsonl, holdout: 3}
judges:
  - {id: exact, kind: rules, principles: [right_number]}
  - {id: direct, kind: yes_no, by: policy, principles: [correct]}
  - id: reasoned
    kind: yes_no
    by: policy
    principles: [correct]
    cot: true
    samples: 4
    temperature: 0.7
steps:
  - sample: {id: solutions, n: 8, prompts: main}
  - judge: {id: exact, uses: [solutions]}
  - pair: {id: both, uses: [exact], candidates: [solutions], strategy: all}
  - questions: {id: cases, judge: direct, uses: [both]}
  - judge: {id: reasoned, uses: [solutions]}
  - filter:
      id: rationales
      records: judgements
      uses: [reasoned]
      filters: [{kind: agrees, with: exact}, {kind: balance, by: verdict}]
  - filter:
      id: solved
      records: completions
      uses: [solutions]
      filters: [{kind: score, by: exact, least: 1}]
  - train: {id: genrm, method: sft, uses: [cases, solved]}
  - train: {id: genrm_cot, method: sft, from: initial, uses: [rationales, solved]}
  - load: {id: labelled, type: pairs, path: pairs.jsonl, prompts: own, holdout: 3}
  - bench: {judges: [direct], pairs: labelled, by: [initial, genrm]}
  - bench: {id: bench_cot, judges: [reasoned], pairs: labelled, by: [initial, genrm_cot]}
"""
OWN_QUESTIONS = """\
name: self-taught-from-own-answers   # arXiv 2408.02666: no labels
models: {policy: {path: POLICY}}
prompts: {path: prompts.jsonl, holdout: 4}
judges:
  - {id: compare, kind: pairwise, by: policy, verdict: written}
  - {id: right, kind: verdict, of: compare}
stages:
  - id: iterate
    rounds: 2
    steps:
      - sample: {id: good, n: 1, prompts: main}
      - sample:
          id: changed
          n: 1
          prompts: main
          system_prompt: Do not answer this question. Answer another one that looks like it.
      - pair: {id: built, chosen: good, rejected: changed}
      - questions: {id: cases, judge: compare, uses: [built]}
      - sample: {id: tries, n: 8, prompts: cases, temperature: 0.7, top_p: 0.9}
      - judge: {id: right, uses: [tries]}
      - pair: {id: verdicts, uses: [right], min_margin: 0.5}
      - train: {id: evaluator, uses: [verdicts], beta: 0.1, nll_weight: 1.5}
      - load: {id: labelled, type: pairs, path: pairs.jsonl, prompts: own, holdout: 3}
      - bench: {judges: [compare], pairs: labelled, by: [initial, evaluator]}
"""
