"""The browser of runs: pages on loopback that read run folders and never write into them.

`app` has the paths and the server, `library` the runs, `state` where each stands, `index` and
`search` what is found of their records, `records` one prompt with all that belongs to it, and
`pages` what each template is given. A new page is a function in `pages`, its template, and its
path in `app`.
"""
