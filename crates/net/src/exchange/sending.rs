//! An admitted exchange on its way to the server: which connection, and what is written on it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use http::header::{HOST, HeaderValue};
use http::{HeaderMap, Method, Uri};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use hutch_policy::{Defence, Flow, Host, Reason};
use hyper::body::Incoming;

use super::Work;
use super::bodies::{Kills, Returning, Until};
use crate::body::{self, Body, Counted, Noted, Upload};
use crate::flow::Stale;
use crate::head::Head;
use crate::relay::Way;
use crate::sandbox::Current;
use crate::tcp;
use crate::upstream::{self, Connection, Key, Pool, Sender};

/// Until the head of a response, from the last piece of the request on that the server took.
const RESPONSE_HEAD: Duration = Duration::from_secs(360);

impl Work<'_> {
    pub(super) fn request(
        &self,
        head: Head,
        body: Body,
        http2: bool,
        upload: &Arc<Upload>,
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
        let noted = Noted {
            inner: Counted::new(body, self.meter.clone(), Way::Up).at_most(most),
            upload: Arc::clone(upload),
        };
        // What is sent ends with the exchange, not when whoever reads the client notices.
        let until = Until {
            inner: noted,
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
        upload: &Upload,
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
                    match in_time(upload, sender.try_send_request(request)).await? {
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
                    let answered = in_time(upload, sender.try_send_request(request)).await;
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

/// Wait for the head of a response, which takes its time only once the request is there.
async fn in_time<F: Future>(upload: &Upload, response: F) -> Result<F::Output, Reason> {
    // Whatever it took until there was a connection.
    upload.moves();
    upload
        .answered(response, RESPONSE_HEAD)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use http_body::Frame;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::{Instant, sleep};

    use super::*;

    const PIECES: usize = 8;
    const PIECE_BYTES: usize = 1000;

    /// Send a body to a server that does as it likes; the status, and how long it took.
    async fn asked<F: Future<Output = ()>>(server: impl FnOnce(DuplexStream) -> F) -> (Result<u16, Reason>, Duration) {
        let (client, server_end) = tokio::io::duplex(PIECE_BYTES);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client))
            .await
            .unwrap();
        tokio::spawn(connection);
        let (pieces, body) = body::Incoming::new(Some((PIECES * PIECE_BYTES) as u64));
        let upload = Arc::new(Upload::new(false));
        let noted = Noted {
            inner: body,
            upload: Arc::clone(&upload),
        };
        let request = http::Request::post("/").body(noted.boxed_unsync()).unwrap();
        let feeding = async move {
            for _ in 0..PIECES {
                let piece = Frame::data(Bytes::from_static(&[b'x'; PIECE_BYTES]));
                if pieces.send(Ok(piece)).await.is_err() {
                    return;
                }
                // As a client does over a slow line.
                sleep(RESPONSE_HEAD / 2).await;
            }
        };
        let began = Instant::now();
        let (response, (), ()) = tokio::join!(
            async {
                let response = in_time(&upload, sender.try_send_request(request)).await;
                drop(sender);
                response.map(|response| response.unwrap().status().as_u16())
            },
            feeding,
            server(server_end)
        );
        (response, began.elapsed())
    }

    async fn read_until_the_end(server: &mut DuplexStream) {
        let (mut got, mut buffer) = (0, [0; PIECE_BYTES]);
        while got < PIECES * PIECE_BYTES {
            got += server.read(&mut buffer).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_long_to_send_is_answered_all_the_same() {
        let (response, took) = asked(async |mut server| {
            read_until_the_end(&mut server).await;
            server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            read_until_gone(&mut server).await;
        })
        .await;
        assert_eq!(response, Ok(204));
        assert!(took > RESPONSE_HEAD * 3, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_given_up_after_the_request() {
        let (response, took) = asked(async |mut server| read_until_gone(&mut server).await).await;
        assert_eq!(response, Err(Reason::UpstreamTimeout));
        let sent = RESPONSE_HEAD / 2 * u32::try_from(PIECES - 1).unwrap();
        let late = Duration::from_secs(1);
        assert!(
            (sent + RESPONSE_HEAD..sent + RESPONSE_HEAD + late).contains(&took),
            "{took:?}"
        );
    }

    async fn read_until_gone(server: &mut DuplexStream) {
        let mut buffer = [0; PIECE_BYTES];
        while server.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    }
}
