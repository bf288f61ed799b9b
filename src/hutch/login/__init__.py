"""Logins by an OpenID provider (`sso`): who somebody is, and which roles in which teams that gives.

    hutch login ─▶ POST /hutch/v1/login          a login begins; a challenge (PKCE) says whose it is
    browser     ─▶ GET  /hutch/v1/login?login=…  to the provider: state, nonce and a challenge of the server's own
    provider    ─▶ GET  /hutch/v1/login/callback its code becomes an ID token, which becomes a person with roles
    browser     ─▶ POST /hutch/v1/login/confirm  they see who they are and what waits for them, and say yes
    hutch login ─▶ POST /hutch/v1/login/token    a code that holds once, and what the challenge was made of, become a token

    id_token.py   what an ID token has to be, and everything that can be wrong with one; no I/O
    roles.py      claims → a person with roles in teams; no I/O
    secrets.py    what one browser's secret makes: state, nonce, verifier and form key; no I/O
    provider.py   the provider itself: its configuration, its keys, its answers, all of them bounded

The steps are in `hutch.api.login`, their rows in `hutch.storage.logins`. Nothing that a provider says is believed before its
signature is checked, and whatever goes wrong gives the browser a page that says what to do and nobody a token.
"""
