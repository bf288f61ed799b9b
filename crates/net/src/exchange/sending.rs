//! An admitted exchange on its way to the server: which connection, and what is written on it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use http::header::{HOST, HeaderValue};
use http::{HeaderMap, Method, Uri};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use hutch_policy::{Defence, Flow, Host, Reason};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::Work;
use super::bodies::{Kills, Returning, Until};
use crate::body::{self, Body, Counted};
use crate::flow::Stale;
use crate::head::Head;
use crate::relay::Way;
use crate::sandbox::Current;
use crate::tcp;
use crate::upstream::{self, Connection, Key, Pool, Sender};

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
            let authority = head.headers.get(HOST).cloned().ok_or(bad)?;
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
        &mut self,
        mut request: http::Request<Body>,
        http2: bool,
    ) -> Result<(http::Response<Incoming>, Option<Returning>), Reason> {
        let served = self.served;
        let pool = if Defence::OwnPool.holds() {
            &served.sandbox.pool
        } else {
            upstream::everybodys()
        };
        let epoch = pool.epoch();
        let key = self.key(http2);
        let mut pooled = pool.take(&key).filter(|waiting| self.may_use(waiting));
        loop {
            let fresh = pooled.is_none();
            let again = if fresh { None } else { Repeatable::of(&request) };
            let Connection { sender, address } = match pooled.take() {
                Some(waiting) => waiting,
                None => self.connect(pool, &key, epoch).await?,
            };
            self.log.dialled = Some(address);
            let mut failed = match sender {
                Sender::Http1(mut sender) => {
                    in_form_of_http1(&mut request)?;
                    match in_time(sender.try_send_request(request)).await? {
                        Ok(response) => {
                            let returning = Returning {
                                key,
                                sender,
                                address,
                                epoch,
                                sandbox: Arc::clone(&served.sandbox),
                            };
                            return Ok((response, Some(returning)));
                        }
                        Err(failed) => failed,
                    }
                }
                Sender::Http2(mut sender) => {
                    // The name is said once, as `:authority`.
                    request.headers_mut().remove(HOST);
                    let answered = in_time(sender.try_send_request(request)).await;
                    if answered.is_err() {
                        pool.forget(&key);
                    }
                    match answered? {
                        Ok(response) => return Ok((response, None)),
                        Err(failed) => failed,
                    }
                }
            };
            // A kept connection that the server had closed. What it may have seen goes out once more, if that changes nothing.
            request = match (failed.take_message(), again) {
                (Some(unsent), _) if !fresh => unsent,
                (None, Some(again)) if is_gone(failed.error()) => again.request(),
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

    /// Whether what holds now has the address of a connection that waited. It may be from before an update that is only
    /// about to close it.
    fn may_use(&self, waiting: &Connection) -> bool {
        let current = self.served.sandbox.current();
        let address = waiting.address.ip();
        self.admits(&current, address).is_ok() && self.goes_to(address, &current).is_ok()
    }

    fn admits(&self, current: &Current, address: IpAddr) -> Result<(), Reason> {
        if !Defence::SweptAddresses.holds() {
            return Ok(());
        }
        if self.forward.is_some() {
            return current.policy.forward_address(address).map(drop);
        }
        current.policy.vet(&self.served.flow.admission(), address)
    }

    /// Note where it is sent, vetted under `current`: from now on an update judges that too.
    fn goes_to(&self, address: IpAddr, current: &Current) -> Result<(), Stale> {
        self.served.sandbox.flows.sent(&self.ongoing, address, current.version)
    }

    async fn connect(&self, pool: &Pool, key: &Key, epoch: u64) -> Result<Connection, Reason> {
        let sandbox = &self.served.sandbox;
        let (stream, address) = loop {
            let current = sandbox.current();
            let addresses = self.addresses(&current).await?;
            let connected = tcp::dial(&addresses, key.port).await?;
            if self.goes_to(connected.1.ip(), &current).is_ok() {
                break connected;
            }
            // The policy changed meanwhile, and let this exchange go on: its address is vetted again.
        };
        let sender = pool
            .begin(key, (stream, address), &sandbox.verifiers, epoch, sandbox.cpu())
            .await?;
        Ok(Connection { sender, address })
    }

    /// The addresses that it may be sent to.
    async fn addresses(&self, current: &Current) -> Result<Vec<IpAddr>, Reason> {
        let (gateway, sandbox) = (&self.served.gateway, &self.served.sandbox);
        let Some(forward) = &self.forward else {
            let flow = Flow {
                destination: self.served.destination,
                virtual_name: None,
            };
            return tcp::candidates(gateway, sandbox, current, &self.served.flow.admission(), &flow).await;
        };
        let found = match &forward.url.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                gateway
                    .resolver()
                    .resolve(&sandbox.cache, name, RecordType::A)
                    .await
                    .map_err(|_| Reason::UpstreamConnect)?
                    .addresses
            }
        };
        let mut refusal = Reason::UpstreamConnect;
        let mut vetted = Vec::new();
        for address in found {
            match current.policy.forward_address(address) {
                Ok(address) => vetted.push(address),
                Err(reason) => refusal = reason,
            }
        }
        if vetted.is_empty() { Err(refusal) } else { Ok(vetted) }
    }
}

/// A server that does not speak HTTP/2 gets the form of HTTP/1.
fn in_form_of_http1(request: &mut http::Request<Body>) -> Result<(), Reason> {
    let Some(authority) = request.uri().authority() else {
        return Ok(());
    };
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Reason::Internal)?;
    request.headers_mut().insert(HOST, host);
    let target = request.uri().path_and_query().cloned();
    *request.uri_mut() = target.map(Uri::from).unwrap_or_default();
    Ok(())
}

/// Wait for the head of a response.
async fn in_time<F: Future>(response: F) -> Result<F::Output, Reason> {
    timeout(RESPONSE_HEAD, response)
        .await
        .map_err(|_| Reason::UpstreamTimeout)
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
