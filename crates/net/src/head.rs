//! The head of the request that goes upstream, from the policy's plan and the secrets.
//!
//! Nothing of the client's head is passed on as bytes: method, target and each header are put together anew, and what is
//! injected replaces every spelling of its name (the plan has dropped them).

use http::header::{ACCEPT_ENCODING, CONNECTION, HOST, HeaderName, HeaderValue, TE, UPGRADE};
use http::{HeaderMap, Method};
use hutch_policy::{Defence, ForwardTo, HeadPlan, Place, Secret, Value, base64};
use zeroize::Zeroizing;

use crate::sandbox::Current;

/// Headers that make a response unsearchable. The plan has dropped them where a rule injects.
const UNSEARCHABLE: [&str; 3] = ["if-range", "range", "sec-websocket-extensions"];
/// Where clients of gRPC and Connect say which compression of messages they take.
const ACCEPT_OF_MESSAGES: [&str; 2] = ["grpc-accept-encoding", "connect-accept-encoding"];

/// Something could not be put into a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unbuildable {
    /// The client's bytes do not make a request that we send.
    Request,
    /// A credential is gone.
    Credential,
}

/// A request head without its authority.
pub struct Head {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: Vec<u8>,
    /// Headers, `Host` first.
    pub headers: HeaderMap,
    /// Names of headers and parameters that something was put into, for the audit.
    pub injected: Vec<String>,
}

/// What the client sent.
pub struct Parts<'a> {
    /// The method.
    pub method: &'a [u8],
    /// Header lines in order.
    pub headers: &'a [(bytes::Bytes, bytes::Bytes)],
}

/// Put a head together.
pub fn build(
    parts: &Parts<'_>,
    plan: &HeadPlan,
    forward: Option<&ForwardTo>,
    current: &Current,
) -> Result<Head, Unbuildable> {
    let method = Method::from_bytes(parts.method).map_err(|_| Unbuildable::Request)?;
    let mut headers = HeaderMap::with_capacity(plan.keep.len() + plan.set.len() + 8);
    let mut injected = Vec::new();
    let host = forward.map_or_else(|| plan.host.clone(), ForwardTo::host);
    headers.insert(HOST, HeaderValue::from_str(&host).map_err(|_| Unbuildable::Request)?);
    for &index in &plan.keep {
        let (name, value) = &parts.headers[index];
        let name = HeaderName::from_bytes(name).map_err(|_| Unbuildable::Request)?;
        let mut value = Zeroizing::new(value.to_vec());
        for replacement in &plan.replace {
            let replaced = match replacement.place {
                Place::Header(at) if at == index => replace(
                    &value,
                    &replacement.placeholder,
                    credential(current, &replacement.credential)?,
                ),
                Place::Basic(at) if at == index => {
                    let (scheme, rest) = value.split_at_checked(6).ok_or(Unbuildable::Request)?;
                    let plain = base64::decode(rest).ok_or(Unbuildable::Request)?;
                    let plain = Zeroizing::new(replace(
                        &plain,
                        &replacement.placeholder,
                        credential(current, &replacement.credential)?,
                    ));
                    [scheme, base64::encode(&plain).as_bytes()].concat()
                }
                _ => continue,
            };
            value = Zeroizing::new(replaced);
            injected.push(name.as_str().to_owned());
        }
        headers.append(name, HeaderValue::from_bytes(&value).map_err(|_| Unbuildable::Request)?);
    }
    for edit in &plan.set {
        let name = HeaderName::from_bytes(edit.name.as_bytes()).map_err(|_| Unbuildable::Request)?;
        let value = rendered(&edit.value, current)?;
        let mut value = HeaderValue::from_str(value.expose()).map_err(|_| Unbuildable::Credential)?;
        value.set_sensitive(true);
        injected.push(edit.name.clone());
        headers.insert(name, value);
    }
    let mut target = forward.map_or_else(|| plan.target.clone(), |forward| forward.target.clone());
    for replacement in plan
        .replace
        .iter()
        .filter(|replacement| replacement.place == Place::Query)
    {
        let value = credential(current, &replacement.credential)?;
        target = replace(&target, &replacement.placeholder, &percent_encoded(value.as_bytes()));
        injected.push("?".to_owned());
    }
    for edit in &plan.query {
        let value = rendered(&edit.value, current)?;
        target.push(if target.contains(&b'?') { b'&' } else { b'?' });
        target.extend_from_slice(percent_encoded(edit.name.as_bytes()).as_bytes());
        target.push(b'=');
        target.extend_from_slice(percent_encoded(value.expose().as_bytes()).as_bytes());
        injected.push(format!("?{}", edit.name));
    }
    if (plan.scrub || forward.is_some()) && Defence::Searchable.holds() {
        // What is compressed cannot be searched as it passes, and a part of a token is not found as the token.
        for name in UNSEARCHABLE {
            headers.remove(name);
        }
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for name in ACCEPT_OF_MESSAGES {
            if headers.contains_key(name) {
                headers.insert(name, HeaderValue::from_static("identity"));
            }
        }
    }
    if plan.trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if plan.websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    injected.sort_unstable();
    injected.dedup();
    Ok(Head {
        method,
        target,
        headers,
        injected,
    })
}

fn credential<'a>(current: &'a Current, name: &str) -> Result<&'a str, Unbuildable> {
    current
        .credentials
        .get(name)
        .map(|value| value.as_str())
        .ok_or(Unbuildable::Credential)
}

/// The text that goes into the request.
pub fn rendered(value: &Value, current: &Current) -> Result<Secret, Unbuildable> {
    match value {
        Value::Literal(secret) => Ok(secret.clone()),
        Value::Credential(used) => Ok(used.render(&Secret::new(credential(current, &used.name)?))),
    }
}

fn replace(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + to.len());
    let mut rest = bytes;
    while let Some(at) = memchr::memmem::find(rest, from.as_bytes()) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to.as_bytes());
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

fn percent_encoded(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 3);
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(byte as char);
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_occurrence_of_a_placeholder_is_replaced() {
        assert_eq!(replace(b"<p> and <p>", "<p>", "secret"), b"secret and secret");
        assert_eq!(replace(b"none", "<p>", "secret"), b"none");
    }

    #[test]
    fn what_goes_into_a_query_is_encoded() {
        assert_eq!(percent_encoded(b"a b&c=d/\xff~"), "a%20b%26c%3Dd%2F%FF~");
    }
}
