"""What `make bench` measures, each beside its peer in the same run.

    python -m bench [ID=tti.seq,exec.rt] [--quick] [--output FILE]

    __main__.py   starts a server, runs what was asked for, writes JSON and prints a table
    catalogue.py  the benchmarks, by id
    measure.py    samples → percentiles; what was aimed at and whether it was met
    machine.py    facts about the machine, memory and CPU readings
    server.py     a real `hutch serve` for a benchmark
    http.py       a lean HTTP client, so that the client's own time does not hide the server's
    sdk.py        the requests that the vendor's JavaScript SDK makes
    raw.py        the peer: plain `runsc` on the same root file system, without any of Hutch
    report.py     docs/performance.md from a result

and one file per group of benchmarks: start.py, execute.py, files.py, density.py, cpu.py, api.py, workers.py.
Samples are never trimmed and failures never retried.
"""
