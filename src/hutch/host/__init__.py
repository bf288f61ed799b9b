"""The host: owner of every sandbox on its machine.

    protocol.py    what the control plane and a host say to each other (values only)
    client.py      the control plane's end
    service.py     the host's end: requests → supervisor
    supervisor.py  sessions: create, adopt, time out, sweep; the place to start
    sessions.py    what is known of them, written and made known
    claims.py      how they get their machines
    ends.py        how they end
    saving.py      how they are saved while they run, and go on from that
    background.py  work that nobody waits for
    machine.py     one live session: its channel, commands and logs
    commands.py    one command: output, readers, exit
    logs.py        stored output with a cap
    journal.py     SQLite: intent before effect, outcome after
    storage.py     writable layers
    snapshots.py   layers that were sealed, and copies of those in use
    memory.py      saved memory, that machines go on from
    pool.py        machines started ahead of time; demand.py decides how many
    prefetch.py    what sandboxes read of images, read ahead after a restart
    drive_storage.py, drives.py
                   where drives lie; what there is of them, and who has them
    images.py      images: built, pulled, removed
    network.py     namespaces, links and the packet baseline
    traffic.py     what passed for each session, kept beyond its gateway's death
    cgroups.py     limits and counters, v1 and v2

The host is right about its sandboxes: it answers for them when the control plane is down, and finds them again after its
own death.
"""
