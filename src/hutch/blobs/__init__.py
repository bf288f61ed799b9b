"""Snapshots as blobs: a form that no file system of ours is needed to read, in a directory or an object store.

    sealed tree ─pack─▶ manifest ─▶ entries (a stream: every name with what it is, directories around what is in them)
                            └─────▶ data    (a stream: the contents of the files, in the order of the entries)

Both streams are cut into chunks of at most 1 MiB. A chunk is named by the BLAKE3 of its content and kept once, compressed: a
snapshot that shares files with another one shares their chunks. Large files are cut at every MiB; small ones are put together
where their names say so, which keeps the cuts where they were when a file in between changes. The manifest is named by its own
BLAKE3, and a pointer with the snapshot's id names the manifest: it is written last, and removed first.

    manifest.py   the values, and their bytes
    pack.py       tree → streams
    unpack.py     streams → tree
    store.py      chunks, manifests and pointers in an object store, verified as they are read
    transfer.py   a snapshot into a store, out of it, compared with it; what nobody needs collected
    tarball.py    tree → tar as OCI lays layers out, and back
    oci.py        the same as a layout of an OCI image
    stream.py     tree → one stream, and back: the way into and out of a virtual machine
    jobs.py       what can be asked for and what comes of it, as values
    packer.py     a process that does one such job

What is packed was written by a hostile guest, what is read may have been changed by anybody: nothing is followed, every number
and name is checked, memory is bounded.
"""
