"""Images of others: fetched from a registry, checked, and merged into one tree of files.

    reference.py   what a reference names: registry, repository, tag, digest
    documents.py   index, manifest and configuration, as hostile JSON
    registry.py    the registry's protocol; every address that is connected to is vetted
    tar.py         entries of a layer's tar, strictly
    tree.py        layers merged in memory, with whiteouts, symbolic and hard links; nothing touches a disk
    layers.py      layers decompressed, counted and hashed
    users.py       who `user` is, by the image's own /etc/passwd and /etc/group
    unpack.py      the process that does all this, shut in: reads blobs, writes the tree once, packs it as EROFS
    written.py     another: packs what a sandbox wrote over an image as one more layer of it
    erofs.py       how both pack

Bytes of an image are hostile. They are read twice: the first time only names are kept, so that an image beyond a bound, or one
with a bad digest, is refused before anything of it is written. What is written then is a tree that was made here: its
directories are known to be directories, so no link of the image is ever followed outside it.
"""
