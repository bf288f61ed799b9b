"""The pages of a login: a few words each, nothing that is fetched, no script. All that is not ours is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from starlette.responses import Response

from hutch.errors import HutchError

HTML = "text/html"
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #17202b; --soft: #5b6675; --line: #dde2e8;
--act: #1f5fd0 }
@media (prefers-color-scheme: dark) {
:root { --page: #11161d; --card: #1a212b; --text: #e8edf3; --soft: #9aa6b5; --line: #313b48; --act: #5a93f5 } }
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 24px; background: var(--page);
color: var(--text); font: 16px/1.5 system-ui, sans-serif }
main { width: 100%; max-width: 440px; padding: 32px; background: var(--card); border: 1px solid var(--line); border-radius: 12px }
.brand { margin: 0 0 20px; color: var(--soft); font-size: 14px; letter-spacing: .02em }
h1 { margin: 0 0 12px; font-size: 22px; line-height: 1.3 }
p { margin: 0 0 14px }
.soft { color: var(--soft); font-size: 14px }
.who { padding: 12px 14px; border: 1px solid var(--line); border-radius: 8px; overflow-wrap: anywhere }
.who b { display: block }
.code { margin: 0 0 14px; padding: 14px; border: 1px dashed var(--line); border-radius: 8px; text-align: center;
font: 600 24px/1 ui-monospace, monospace; letter-spacing: .12em }
label { display: block; margin: 0 0 8px; overflow-wrap: anywhere }
input[type=text], input[type=password] {
width: 100%; margin: 4px 0 14px; padding: 10px 12px; border: 1px solid var(--line); border-radius: 8px;
background: transparent; color: inherit; font: 18px ui-monospace, monospace; letter-spacing: .1em; text-transform: uppercase }
input[type=password], input.plain { text-transform: none; letter-spacing: 0 }
fieldset { margin: 0 0 14px; padding: 10px 14px; border: 1px solid var(--line); border-radius: 8px }
legend { padding: 0 6px; color: var(--soft); font-size: 14px }
.actions { display: flex; gap: 10px; margin-top: 20px }
button { padding: 10px 18px; border: 1px solid var(--line); border-radius: 8px; background: transparent;
color: inherit; font: inherit; cursor: pointer }
button.main { background: var(--act); border-color: var(--act); color: #fff; font-weight: 600 }
button:focus-visible, input:focus-visible { outline: 3px solid var(--act); outline-offset: 2px }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


@dataclass(frozen=True, slots=True)
class Choice:
    """A team that somebody can log in to, as the member that they are there."""

    member_id: str
    team: str
    role: str


def page(title: str, body: str, status: int = 200, *, to: Sequence[str] = (), head: str = "") -> Response:
    """A page. `body` and `head` are HTML; a form of it may lead to this server, and to the origins `to`."""
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="robots" content="noindex">\n'
        f"{head}"
        f"<title>{escape(title)} · Hutch</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<p class="brand">Hutch</p>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n'
    )
    response = Response(text, status, media_type=HTML)
    # What a form is answered with may lead elsewhere, and browsers look at that, too.
    forms = " ".join(("'self'", *to))
    policy = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action {forms}; base-uri 'none'; frame-ancestors 'none'"
    response.headers.update(PROTECTED | {"content-security-policy": policy, "x-frame-options": "DENY"})
    return response


PROTECTED = {
    "cache-control": "no-store",
    # Not `no-referrer`: browsers then say of our own form that it came from nowhere (`Origin: null`).
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
}
"""What every answer to a browser says: nothing of it is kept, or told to another site."""


def failed(error: HutchError) -> Response:
    """A page that says what went wrong."""
    title = "You are not logged in" if error.status != 404 else "There is nothing here"
    body = f'<p>{escape(error.message)}</p>\n<p class="soft">Error: <code>{escape(error.code)}</code></p>'
    response = page(title, body, error.status)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


def onward(url: str) -> Response:
    """On to the provider. Not a redirect: what a form is answered with may lead nowhere else, however often it is sent on."""
    body = f'<p><a href="{escape(url)}">Go on</a> if nothing happens.</p>'
    return page("On to your organisation's login", body, head=f'<meta http-equiv="refresh" content="0; url={escape(url)}">\n')


def ask_for_code(action: str) -> Response:
    """Where somebody types the code that their terminal shows."""
    return page(
        "Log in to a command line",
        "<p>Type the code that <code>hutch login</code> shows in your terminal.</p>\n"
        f'<form method="get" action="{escape(action)}">\n<label>Code\n<input type="text" name="user_code" required autofocus '
        'autocomplete="off" autocapitalize="characters" spellcheck="false" maxlength="16" placeholder="BCDF-GHJK"></label>\n'
        '<div class="actions"><button class="main" type="submit">Go on</button></div>\n</form>',
    )


def confirm(
    action: str, form: str, person: str, choices: Sequence[Choice], *, code: str | None, address: str, to: Sequence[str]
) -> Response:
    """Somebody is known now; they say whether it is they who wait for this, and as a member of which team."""
    parts = [f'<p class="who"><b>{escape(person)}</b><span class="soft">is who the provider says that you are</span></p>']
    if code is not None:
        parts.append("<p>A command line waits for this login. Go on only if it is yours, and shows this code:</p>")
        parts.append(f'<p class="code">{escape(code)}</p>')
    else:
        parts.append("<p>A command line on this machine waits for this login. Go on only if you began it.</p>")
    if address:
        parts.append(f'<p class="soft">It began at the address {escape(address)}.</p>')
    rows = [
        f'<label><input type="radio" name="member" value="{escape(choice.member_id)}"{" checked" if number == 0 else ""}> '
        f'{escape(choice.team)} <span class="soft">as {escape(choice.role)}</span></label>'
        for number, choice in enumerate(choices)
    ]
    parts.append(
        f'<form method="post" action="{escape(action)}">\n<input type="hidden" name="form" value="{escape(form)}">\n'
        f"<fieldset><legend>Team</legend>\n{''.join(rows)}\n</fieldset>\n"
        '<div class="actions"><button class="main" type="submit" name="answer" value="yes">Log in</button>'
        '<button type="submit" name="answer" value="no">Cancel</button></div>\n</form>'
    )
    return page("Log in to a command line", "\n".join(parts), to=to)


def confirm_ntn(action: str, code: str, elsewhere: str | None) -> Response:
    """Where a login of `ntn` is confirmed. `elsewhere`: where somebody goes whom the organisation's provider knows."""
    parts = ["<p><code>ntn login</code> waits for this login. Go on only if you began it, and your terminal shows this code:</p>"]
    if elsewhere is not None:
        parts.append(
            f'<p class="code">{escape(code)}</p>\n<p><a href="{escape(elsewhere)}">Log in with your organisation</a></p>'
        )
        parts.append('<p class="soft">Or with a token:</p>')
    field = 'type="text" autocomplete="off" spellcheck="false"'
    parts.append(
        f'<form method="post" action="{escape(action)}">\n'
        f'<label>Code\n<input {field} name="user_code" required value="{escape(code)}" maxlength="16" '
        'placeholder="BCDF-GHJK"></label>\n'
        '<label>Token\n<input type="password" name="token" required autocomplete="off"></label>\n'
        f'<label>Project <span class="soft">(the token\'s, where it has one)</span>\n'
        f'<input class="plain" {field} name="project" maxlength="64"></label>\n'
        '<p class="soft">It becomes another token, for the workers of one project and nothing else. Make yours with '
        "<code>hutch token create --role owner</code>.</p>\n"
        '<div class="actions"><button class="main" type="submit" name="answer" value="yes">Log in</button>'
        '<button type="submit" name="answer" value="no">Cancel</button></div>\n</form>'
    )
    return page("Log in to ntn", "\n".join(parts))


def done() -> Response:
    return page("You are logged in", "<p>You can close this page and go back to your terminal.</p>")


def cancelled() -> Response:
    return page("The login was cancelled", "<p>Nobody was logged in. You can close this page.</p>")


def not_taken() -> Response:
    return page("The login did not end well", "<p>Your terminal says why. You can close this page.</p>")
