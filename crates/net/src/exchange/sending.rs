//! An admitted exchange on its way to the server: which connection, and what is written on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::header::HeaderValue;
use http::{HeaderMap, Method, Uri};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use hutch_policy::{Defence, Flow, Reason};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::Work;
use super::bodies::{Kills, Returning, Until};
use crate::body::{self, Body, Counted};
use crate::head::Head;
use crate::relay::Way;
use crate::tcp;
use crate::upstream::{self, Key, Sender};

/// Until the head of a response.
const RESPONSE_HEAD: Duration = Duration::from_secs(360);

impl Work<'_> {
    pub(super) fn request(
        &self,
        head: Head,
        body: Body,
        http2: bool,
        sent: &Arc<AtomicBool>,
    ) -> Result<http::Request<Body>, Reason> {
        let bad = Reason::ProtocolViolation;
        let uri = if http2 && self.forward.is_none() {
            let authority = head.headers.get(http::header::HOST).cloned().ok_or(bad)?;
            Uri::builder()
                .scheme("https")
                .authority(authority.as_bytes())
                .path_and_query(head.target.as_slice())
                .build()
                .map_err(|_| bad)?
        } else {
            Uri::try_from(head.target.as_slice()).map_err(|_| bad)?
        };
        let most = self.served.gateway.settings().max_upload_bytes;
        let counted = Counted::new(body, self.meter.clone(), Way::Up, Some(Arc::clone(sent))).at_most(most);
        // What is sent ends with the exchange, not when whoever reads the client notices.
        let until = Until {
            inner: counted,
            kills: Kills::new(Arc::clone(&self.served.flow), Arc::clone(&self.ongoing.kill)),
        };
        let mut request = http::Request::new(until.boxed_unsync());
        *request.method_mut() = head.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = head.headers;
        Ok(request)
    }

    pub(super) async fn send(
        &self,
        request: http::Request<Body>,
        http2: bool,
    ) -> Result<(http::Response<Incoming>, Option<Returning>), Reason> {
        let pool = if Defence::OwnPool.holds() {
            &self.served.sandbox.pool
        } else {
            upstream::everybodys()
        };
        let epoch = pool.epoch();
        let key = self.key(http2);
        let mut request = request;
        let mut pooled = pool.take(&key);
        loop {
            let fresh = pooled.is_none();
            let again = if fresh { None } else { Repeatable::of(&request) };
            let sender = if let Some(sender) = pooled.take() {
                sender
            } else {
                let (stream, address) = self.dial(&key).await?;
                self.served.dialled(address);
                {
                    let sandbox = &self.served.sandbox;
                    pool.begin(&key, stream, &sandbox.verifiers, epoch, sandbox.cpu())
                        .await?
                }
            };
            let (unsent, gone) = match sender {
                Sender::Http1(mut sender) => {
                    if let Some(authority) = request.uri().authority() {
                        // A server that does not speak HTTP/2 gets the form of HTTP/1.
                        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Reason::Internal)?;
                        request.headers_mut().insert(http::header::HOST, host);
                        let target = request.uri().path_and_query().cloned();
                        *request.uri_mut() = target.map(Uri::from).unwrap_or_default();
                    }
                    match timeout(RESPONSE_HEAD, sender.try_send_request(request)).await {
                        Err(_) => return Err(Reason::UpstreamTimeout),
                        Ok(Ok(response)) => {
                            let returning = Returning {
                                key: key.clone(),
                                sender,
                                epoch,
                                sandbox: Arc::clone(&self.served.sandbox),
                            };
                            return Ok((response, Some(returning)));
                        }
                        Ok(Err(mut failed)) => (failed.take_message(), is_gone(failed.error())),
                    }
                }
                Sender::Http2(mut sender) => {
                    // The name is said once, as `:authority`.
                    request.headers_mut().remove(http::header::HOST);
                    match timeout(RESPONSE_HEAD, sender.try_send_request(request)).await {
                        Err(_) => {
                            pool.forget(&key);
                            return Err(Reason::UpstreamTimeout);
                        }
                        Ok(Ok(response)) => return Ok((response, None)),
                        Ok(Err(mut failed)) => (failed.take_message(), is_gone(failed.error())),
                    }
                }
            };
            // A kept connection that the server had closed. What it may have seen goes out once more, if that changes nothing.
            request = match (unsent, again) {
                (Some(unsent), _) if !fresh => unsent,
                (None, Some(again)) if gone => again.request(),
                _ => return Err(Reason::UpstreamProtocol),
            };
        }
    }

    fn key(&self, http2: bool) -> Key {
        let rule = self
            .rule
            .as_ref()
            .map(|rule| rule.id)
            .filter(|_| Defence::OwnPool.holds());
        let thread = std::thread::current().id();
        if let Some(forward) = &self.forward {
            return Key {
                host: forward.host_name(),
                port: forward.url.port,
                tls: true,
                http2: false,
                rule,
                thread,
            };
        }
        let admission = self.served.flow.admission();
        Key {
            host: admission.name().map_or_else(String::new, ToString::to_string),
            port: admission.port(),
            tls: admission.handling == hutch_policy::Handling::Intercept,
            http2,
            rule,
            thread,
        }
    }

    async fn dial(&self, key: &Key) -> Result<(tokio::net::TcpStream, SocketAddr), Reason> {
        if let Some(forward) = &self.forward {
            let found = match &forward.url.host {
                hutch_policy::Host::Address(address) => vec![*address],
                hutch_policy::Host::Name(name) => {
                    self.served
                        .gateway
                        .resolver()
                        .resolve(&self.served.sandbox.cache, name, hickory_proto::rr::RecordType::A)
                        .await
                        .map_err(|_| Reason::UpstreamConnect)?
                        .addresses
                }
            };
            let mut refusal = Reason::UpstreamConnect;
            let mut vetted = Vec::new();
            for address in found {
                match self.current.policy.forward_address(address) {
                    Ok(address) => vetted.push(address),
                    Err(reason) => refusal = reason,
                }
            }
            if vetted.is_empty() {
                return Err(refusal);
            }
            return tcp::dial(&vetted, key.port).await;
        }
        let flow = Flow {
            destination: self.served.destination,
            virtual_name: None,
        };
        let admission = self.served.flow.admission();
        let addresses = tcp::candidates(
            &self.served.gateway,
            &self.served.sandbox,
            &self.current,
            &admission,
            &flow,
        )
        .await?;
        tcp::dial(&addresses, key.port).await
    }
}

/// A request that may be sent twice: RFC 9110 §9.2.2, without those that have a body.
struct Repeatable {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Repeatable {
    fn of(request: &http::Request<Body>) -> Option<Self> {
        let safe = matches!(*request.method(), Method::GET | Method::HEAD);
        (safe && request.body().is_end_stream()).then(|| Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        })
    }

    fn request(self) -> http::Request<Body> {
        let mut request = http::Request::new(body::empty());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// Whether the connection ended without an answer. One that is no HTTP is an answer.
fn is_gone(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    error.is_incomplete_message() || source.is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
}
