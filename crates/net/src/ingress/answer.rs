//! Answers of the ingress's own, which `x-hutch-error` tells from those of programs.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, Full};

use super::proxy::Body;

/// Has the code of an answer of ours; no answer of a program has it.
pub const ERROR: HeaderName = HeaderName::from_static("x-hutch-error");

/// Why a request is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It can't be meant, or could be read in two ways.
    BadRequest,
    /// No sandbox has the name.
    NotFound,
    /// The port is private.
    Unauthorized,
    /// Its session ended.
    Stopped,
    /// The body is larger than the operator wants.
    TooLarge,
    /// Nothing listens on the port.
    NotListening,
    /// The program broke off, or answered with what is not HTTP.
    BadAnswer,
    /// The sandbox does not take connections in time.
    Timeout,
    /// It has as many requests as one sandbox may.
    Busy,
    /// It was to be resumed for this request, and was not.
    NotResumed,
    /// This process was only just started.
    Starting,
}

impl Refusal {
    /// Each of them.
    pub const ALL: [Self; 11] = [
        Self::BadRequest,
        Self::NotFound,
        Self::Unauthorized,
        Self::Stopped,
        Self::TooLarge,
        Self::NotListening,
        Self::BadAnswer,
        Self::Timeout,
        Self::Busy,
        Self::NotResumed,
        Self::Starting,
    ];

    /// Status and code.
    pub fn code(self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest => (StatusCode::BAD_REQUEST, "BAD_REQUEST"),
            Self::NotFound => (StatusCode::NOT_FOUND, "SANDBOX_NOT_FOUND"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "SANDBOX_PORT_PRIVATE"),
            Self::Stopped => (StatusCode::GONE, "SANDBOX_STOPPED"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE"),
            Self::NotListening => (StatusCode::BAD_GATEWAY, "SANDBOX_NOT_LISTENING"),
            Self::BadAnswer => (StatusCode::BAD_GATEWAY, "SANDBOX_BAD_ANSWER"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "SANDBOX_TIMEOUT"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "SANDBOX_BUSY"),
            Self::NotResumed => (StatusCode::SERVICE_UNAVAILABLE, "SANDBOX_NOT_RESUMED"),
            Self::Starting => (StatusCode::SERVICE_UNAVAILABLE, "INGRESS_STARTING"),
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::BadRequest => "The request can't be understood.",
            Self::NotFound => "No sandbox has this address.",
            Self::Unauthorized => "This port is private. Ask its owner for a link.",
            Self::Stopped => "The sandbox has stopped.",
            Self::TooLarge => "The body of the request is larger than this server takes.",
            Self::NotListening => "Nothing listens on this port of the sandbox.",
            Self::BadAnswer => "The program in the sandbox did not answer with HTTP.",
            Self::Timeout => "The sandbox does not answer.",
            Self::Busy => "The sandbox has as many requests as it may. Try again.",
            Self::NotResumed => "The sandbox could not be resumed. Try again.",
            Self::Starting => "The server is starting. Try again.",
        }
    }

    /// The answer: HTML for browsers, JSON for all else.
    pub fn response(self, html: bool) -> Response<Body> {
        let (status, code) = self.code();
        let message = self.message();
        let (kind, text) = if html {
            (
                "text/html; charset=utf-8",
                format!(
                    "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{message}</title>\
                     <body style=\"font:1rem system-ui;margin:20vh auto;max-width:32rem;text-align:center\">\
                     <h1 style=\"font-size:1.5rem\">{message}</h1><p><code>{code}</code></p>\n"
                ),
            )
        } else {
            (
                "application/json",
                serde_json::json!({"error": {"code": code, "message": message}}).to_string(),
            )
        };
        let mut response = Response::new(full(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(ERROR, HeaderValue::from_static(code));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}

/// A body that is here already.
pub fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Whether who asks is a browser that shows a page.
pub fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/html"))
}
