//! Which sandbox's port a request is for.

use http::header::HOST;
use http::{HeaderMap, Uri};

/// The label that no sandbox has.
const WEBHOOKS: &str = "webhooks";
/// Where the server has webhooks; it answers for nothing else there.
const WEBHOOK_PATH: &str = "/webhooks/worker/";

/// The authority that a request names: its `Host`, or that of its target. `None` when there is none, more than one, or two that
/// differ.
pub fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    let host = match host {
        Some(host) => Some(host.to_str().ok()?),
        None => None,
    };
    let found = match (uri.authority(), host) {
        (Some(target), Some(host)) if target.as_str().eq_ignore_ascii_case(host) => host,
        (Some(_), Some(_)) => return None,
        (Some(target), None) => target.as_str(),
        (None, host) => host?,
    };
    let meant = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte);
    found.bytes().all(meant).then_some(found)
}

/// The name in an authority, and its port.
pub fn split(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
        _ => (authority, None),
    }
}

/// Whether a request is for a webhook of the server: at the name that they have below the domain, or at no name below it, such as
/// the address of this machine.
pub fn is_webhook(subdomain: Option<&str>, path: &str) -> bool {
    subdomain.is_none_or(|label| label == WEBHOOKS) && path.starts_with(WEBHOOK_PATH)
}

/// The one label in front of `domain`, in small letters.
pub fn subdomain(authority: &str, domain: &str) -> Option<String> {
    let (name, _) = split(authority);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let label = name.strip_suffix(domain)?.strip_suffix('.')?;
    (!label.is_empty() && !label.contains('.')).then(|| label.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn read(uri: &str, hosts: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_str(host).unwrap());
        }
        authority(&uri.parse().unwrap(), &headers).map(str::to_owned)
    }

    #[test]
    fn a_request_names_one_authority() {
        assert_eq!(read("/", &["sb-a.localhost:80"]).as_deref(), Some("sb-a.localhost:80"));
        assert_eq!(read("http://sb-a.localhost/x", &[]).as_deref(), Some("sb-a.localhost"));
        assert_eq!(
            read("http://sb-a.localhost/x", &["SB-A.localhost"]).as_deref(),
            Some("SB-A.localhost")
        );
        assert_eq!(read("/", &[]), None);
        assert_eq!(read("/", &["a.localhost", "b.localhost"]), None);
        assert_eq!(read("/", &["a.localhost", "a.localhost"]), None);
        assert_eq!(read("http://a.localhost/", &["b.localhost"]), None);
        for bad in [
            "user@a.localhost",
            "a.localhost/x",
            "a.localhost, b",
            "a localhost",
            "a\\localhost",
        ] {
            assert_eq!(read("/", &[bad]), None, "{bad}");
        }
    }

    #[test]
    fn webhooks_have_one_name_and_one_path() {
        assert!(is_webhook(None, "/webhooks/worker/p/w/a/key"));
        assert!(is_webhook(Some("webhooks"), "/webhooks/worker/"));
        for (label, path) in [
            (Some("sb-1"), "/webhooks/worker/p/w/a/key"),
            (None, "/"),
            (None, "/webhooks/worker"),
            (None, "//webhooks/worker/p"),
            (Some("webhooks"), "/api/webhooks/worker/"),
        ] {
            assert!(!is_webhook(label, path), "{label:?} {path}");
        }
    }

    #[test]
    fn one_label_below_the_domain_is_a_subdomain() {
        assert_eq!(subdomain("sb-1.localhost", "localhost").as_deref(), Some("sb-1"));
        assert_eq!(subdomain("SB-1.LocalHost.:8080", "localhost").as_deref(), Some("sb-1"));
        for other in [
            "localhost",
            ".localhost",
            "a.b.localhost",
            "sb-1.localhost.example",
            "sb-1localhost",
            "127.0.0.1:80",
            "[::1]:80",
            "",
        ] {
            assert_eq!(subdomain(other, "localhost"), None, "{other}");
        }
    }
}
