"""Seeded schedules: the real protocol on a real Redis and a model S3, interleaved call by call and judged afterwards.

It never starts a worker or a server of S3, and never judges a history with the protocol's own code.

    plan        what a schedule is: operations, and the steps that they take
    families    which schedules are drawn, and which guarantees each family must keep
    model_s3    a key's history in S3, its stale replicas and its faults
    wire        the least that speaks to Redis
    tape        one operation, advanced by one call at a time
    protocols   what is run: the package, its mutants, and the order of 2014
    world       takes steps and keeps the history
    scheduler   draws schedules from seeds, and plays given ones
    history     what happened, as the checker sees it
    checker     the guarantees, written from DESIGN.md
    shrink      the shortest schedule that still fails
    telling     a schedule in words
    found       the shortest schedules of faults that seeds have found
    hunts       how soon a broken protocol is found out
    campaign    many seeds over several processes
    python -m tests.faults.schedules --runs 1000000 --processes 2
"""
