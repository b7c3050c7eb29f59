"""A run folder mirrored to a store that outlives the machine, such as S3.

    remote    the store behind a URL: its few operations, and its errors in words
    lease     which machine may write: numbered heads, each created by one machine alone
    snapshot  the files of a run folder at one moment, cut into parts
    pull      from the mirror into a run folder
    session   one run with a mirror: pull first, upload beside the run, complete it at the end

In the store, `objects/DIGEST` are parts of files, and lists of files (trees); each is written once.
`heads/NUMBER` name the tree that counts and who may write the next head. A head appears at once or
not at all, so whoever reads the mirror sees one moment of the run and never a mixture: the marker
of a finished step is in no tree that lacks the step's files.

`mirrored` and `pull` are the entrances.
"""
