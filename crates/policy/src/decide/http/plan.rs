//! The head of the request that goes upstream, as data.

use super::{Exchange, Placeholder, Request};
use crate::base64;
use crate::decide::query;
use crate::defence::Defence;
use crate::names::Host;
use crate::reasons::Reason;
use crate::rules::{ForwardUrl, HeaderEdit, QueryEdit, Transform, Value};

/// What the head of the upstream request is made of. Framing (`Content-Length`, chunks, `Connection`) is the gateway's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
// Four independent facts about one request; no two of them make a state.
#[allow(clippy::struct_excessive_bools)]
pub struct HeadPlan {
    /// Path and query as sent upstream, before `query` is added: the client's bytes, without parameters that are set.
    pub target: Vec<u8>,
    /// The `Host`: the flow's name with its port unless that is the default one, or what a rule pins.
    pub host: String,
    /// Indexes of the client's headers that go on, in order.
    pub keep: Vec<usize>,
    /// Headers to add, each once; no kept header has the same name.
    pub set: Vec<HeaderEdit>,
    /// Parameters to add at the end of the query.
    pub query: Vec<QueryEdit>,
    /// Placeholders to replace. Values of kept headers, and `target`.
    pub replace: Vec<Replacement>,
    /// Whether the response is searched for what is injected. Then `Accept-Encoding: identity` is to be sent.
    pub scrub: bool,
    /// Whether the client asks for a WebSocket; `Upgrade` and `Connection` are then to be rebuilt.
    pub websocket: bool,
    /// Whether the client accepts trailers (`TE: trailers`).
    pub trailers: bool,
    /// Whether the client waits for `100 Continue`.
    pub expects_continue: bool,
}

impl HeadPlan {
    /// Whether anything is put into the request.
    pub fn injects(&self) -> bool {
        !self.set.is_empty() || !self.query.is_empty() || !self.replace.is_empty()
    }
}

/// Where a placeholder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the value of the header of this index, as it is.
    Header(usize),
    /// In the credentials of `Authorization: Basic` at this index, in Base64.
    Basic(usize),
    /// In the query, to be percent-encoded.
    Query,
}

/// A placeholder that becomes a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// Where it is.
    pub place: Place,
    /// Its text.
    pub placeholder: String,
    /// The credential whose value takes its place.
    pub credential: String,
}

/// The other end of a `forwardURL`. The token is the gateway's to add, as `vercel-sandbox-oidc-token`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardTo {
    /// As in the policy: the audience of the token.
    pub url: ForwardUrl,
    /// The path of the URL and the target of the request.
    pub target: Vec<u8>,
    /// Headers that say what was asked for, without the token.
    pub identity: Vec<(&'static str, String)>,
}

/// Headers of one connection; they are never passed on and never survive from the client.
const HOP_BY_HOP: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];
/// Headers that make some servers take the request for one of another method.
const METHOD_OVERRIDES: [&str; 3] = ["x-http-method", "x-http-method-override", "x-method-override"];
/// Headers that make a response unsearchable.
const UNSEARCHABLE: [&str; 4] = ["accept-encoding", "if-range", "range", "sec-websocket-extensions"];

/// The name of a header as servers may read it: in lower case, with `-` for `_`.
fn folded(name: &[u8]) -> String {
    name.iter()
        .map(|&byte| {
            if byte == b'_' {
                '-'
            } else {
                byte.to_ascii_lowercase() as char
            }
        })
        .collect()
}

/// Whether only the gateway may say this of a request.
pub(crate) fn is_identity_header(name: &[u8]) -> bool {
    let name = folded(name);
    if !Defence::IdentityHeaders.holds() {
        return false;
    }
    ["vercel-forwarded-", "x-egress-forwarded-", "x-hutch-"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || name == "vercel-sandbox-oidc-token"
}

/// The headers that `Connection` declares to be of this connection, folded.
fn nominated(request: &Request) -> Vec<String> {
    let lines = request
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"));
    lines
        .flat_map(|(_, value)| value.split(|&byte| byte == b','))
        .map(|token| folded(token.trim_ascii()))
        .filter(|token| !token.is_empty())
        .collect()
}

/// Which headers rules may look at: those that go on, and the harmless ones of the connection.
pub(super) fn visible_headers(request: &Request) -> Vec<bool> {
    let nominated = nominated(request);
    let visible = |name: &[u8]| {
        let known = HOP_BY_HOP
            .iter()
            .any(|other| name.eq_ignore_ascii_case(other.as_bytes()));
        !is_identity_header(name) && (known || !nominated.contains(&folded(name)))
    };
    request.headers.iter().map(|(name, _)| visible(name)).collect()
}

pub(super) fn build(
    exchange: &Exchange,
    transform: &Transform,
    placeholders: &[Placeholder],
    drops_overrides: bool,
    scrub: bool,
) -> Result<HeadPlan, Reason> {
    let request = exchange.request;
    let nominated = nominated(request);
    // A credential with a placeholder only ever takes the placeholder's place.
    let added = |value: &Value| {
        let bare = value.credential().is_none_or(|used| used.placeholder.is_none());
        bare || !Defence::AmbientUse.holds()
    };
    let stays = |edit: &HeaderEdit| Defence::Nominated.holds() || !nominated.contains(&folded(edit.name.as_bytes()));
    let set: Vec<HeaderEdit> = transform
        .headers
        .iter()
        .filter(|edit| added(&edit.value) && edit.name != "host" && stays(edit))
        .cloned()
        .collect();
    let query: Vec<QueryEdit> = transform
        .query
        .iter()
        .filter(|edit| added(&edit.value))
        .cloned()
        .collect();
    let collides =
        |name: &str| Defence::Spellings.holds() && set.iter().any(|edit| folded(edit.name.as_bytes()) == name);
    let dropped = |raw: &[u8]| {
        let name = folded(raw);
        HOP_BY_HOP.contains(&name.as_str())
            || name.starts_with("proxy-")
            || name.starts_with("x-forwarded-")
            || is_identity_header(raw)
            || nominated.contains(&name)
            || collides(&name)
            || (drops_overrides && Defence::MethodOverrides.holds() && METHOD_OVERRIDES.contains(&name.as_str()))
            || (scrub && Defence::Searchable.holds() && UNSEARCHABLE.contains(&name.as_str()))
    };
    let keep: Vec<usize> = (0..request.headers.len())
        .filter(|&index| !dropped(request.headers[index].0))
        .collect();
    let names: Vec<&str> = query.iter().map(|edit| edit.name.as_str()).collect();
    let rest = match exchange.query {
        Some(raw) if names.is_empty() => Some(raw.to_vec()),
        Some(raw) => Some(query::without(raw, &names)).filter(|rest| !rest.is_empty()),
        None => None,
    };
    let mut target = exchange.path.to_vec();
    if let Some(rest) = rest {
        target.push(b'?');
        target.extend_from_slice(&rest);
    }
    let replace = replacements(exchange, transform, placeholders, &keep, &target)?;
    let header = |name: &str| {
        let line = request
            .headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()));
        line.map(|(_, value)| *value)
    };
    Ok(HeadPlan {
        host: host(exchange, transform),
        target,
        scrub,
        // RFC 6455 §4.1: with GET. After a body it would not be clear where the tunnel begins.
        websocket: exchange.method == "GET"
            && header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"))
            && nominated.iter().any(|name| name == "upgrade")
            || header("upgrade").is_some() && !Defence::WebsocketOnly.holds(),
        trailers: header("te").is_some_and(|value| value.eq_ignore_ascii_case(b"trailers")),
        expects_continue: header("expect").is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue")),
        keep,
        set,
        query,
        replace,
    })
}

fn host(exchange: &Exchange, transform: &Transform) -> String {
    let pinned = transform
        .headers
        .iter()
        .find(|edit| edit.name == "host")
        .and_then(|edit| super::literal(&edit.value));
    if let Some(host) = pinned {
        return host.expose().to_owned();
    }
    let default = if exchange.plaintext { 80 } else { 443 };
    if exchange.port == default {
        exchange.name.to_string()
    } else {
        format!("{}:{}", exchange.name, exchange.port)
    }
}

/// Find every placeholder in the head. One in a place where no rule replaces it refuses the request: somebody tries where
/// the credential can be made to go.
fn replacements(
    exchange: &Exchange,
    transform: &Transform,
    placeholders: &[Placeholder],
    keep: &[usize],
    target: &[u8],
) -> Result<Vec<Replacement>, Reason> {
    let mut found = Vec::new();
    for placeholder in placeholders.iter().filter(|placeholder| !placeholder.text.is_empty()) {
        let covered = transform.credentials().any(|used| {
            used.placeholder.as_deref() == Some(placeholder.variable.as_str()) && used.name == placeholder.credential
        });
        let contains = |bytes: &[u8]| memchr::memmem::find(bytes, placeholder.text.as_bytes()).is_some();
        let mut places = Vec::new();
        for (index, (name, value)) in exchange.request.headers.iter().enumerate() {
            if contains(name) && Defence::PlaceholderScope.holds() {
                return Err(Reason::PlaceholderMisuse);
            }
            let place = if contains(value) {
                Place::Header(index)
            } else if basic_credentials(name, value).is_some_and(|text| contains(&text)) {
                Place::Basic(index)
            } else {
                continue;
            };
            // A header that does not go on cannot carry it anywhere.
            if keep.contains(&index) || !covered {
                places.push(place);
            }
        }
        let query = target
            .iter()
            .position(|&byte| byte == b'?')
            .map_or(&[][..], |at| &target[at + 1..]);
        if contains(exchange.path) && Defence::PlaceholderScope.holds() {
            return Err(Reason::PlaceholderMisuse);
        }
        if contains(query) {
            places.push(Place::Query);
        }
        if !covered && !places.is_empty() && Defence::PlaceholderScope.holds() {
            return Err(Reason::PlaceholderMisuse);
        }
        found.extend(places.into_iter().map(|place| Replacement {
            place,
            placeholder: placeholder.text.clone(),
            credential: placeholder.credential.clone(),
        }));
    }
    Ok(found)
}

/// The decoded user and password of HTTP's Basic scheme.
fn basic_credentials(name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    let is_credentials = [&b"authorization"[..], b"proxy-authorization"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known));
    let (scheme, rest) = value.split_at_checked(6)?;
    if !is_credentials || !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    base64::decode(rest)
}

pub(super) fn forward_to(exchange: &Exchange, url: &ForwardUrl) -> ForwardTo {
    let mut asked = exchange.path.to_vec();
    if let Some(query) = exchange.query {
        asked.push(b'?');
        asked.extend_from_slice(query);
    }
    let target = [url.path.as_bytes(), &asked].concat();
    let scheme = if exchange.plaintext { "http" } else { "https" };
    let said = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let facts = [
        (
            ["vercel-forwarded-host", "x-egress-forwarded-host"],
            exchange.name.to_string(),
        ),
        (
            ["vercel-forwarded-scheme", "x-egress-forwarded-scheme"],
            scheme.to_owned(),
        ),
        (
            ["vercel-forwarded-port", "x-egress-forwarded-port"],
            exchange.port.to_string(),
        ),
        (["vercel-forwarded-path", "x-egress-forwarded-path"], said(&asked)),
    ];
    let identity = facts
        .into_iter()
        .flat_map(|(names, value)| names.map(|name| (name, value.clone())))
        .collect();
    ForwardTo {
        url: url.clone(),
        target,
        identity,
    }
}

impl ForwardTo {
    /// The name or address that must vouch for itself.
    pub fn host_name(&self) -> String {
        match &self.url.host {
            Host::Name(name) => name.to_string(),
            Host::Address(address) => address.to_string(),
        }
    }

    /// The `Host` that the other end gets.
    pub fn host(&self) -> String {
        let host = match &self.url.host {
            Host::Address(std::net::IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.host_name(),
        };
        if self.url.port == 443 {
            host
        } else {
            format!("{host}:{}", self.url.port)
        }
    }
}
