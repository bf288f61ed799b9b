"""Decisions of the control plane, without I/O: values in, values out.

    names.py           sandbox names and slugs: what is allowed, what is generated
    mounts.py          where in a sandbox drives can be mounted
    requests.py        bodies of requests as pydantic models, and their error messages
    dockerfile.py      Dockerfiles as steps, with their variables replaced
    cursor.py          opaque page cursors
    lifecycle.py       states of sessions and sandboxes, and how a host's report changes a record
    records.py         what the database holds, as frozen values
    shapes.py          records → the JSON objects of the API

Nothing here knows of HTTP, SQL or sockets, so all of it is tested with plain calls.
"""
