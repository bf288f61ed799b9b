//! Connections of guests, from accept to the end.
//!
//! Decide by address; if the policy has to know the name, look at the first bytes; decide again; register the flow;
//! connect to an address that the gateway resolved and vetted itself; then pass bytes on unseen, or take part.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use hickory_proto::rr::RecordType;
use hutch_policy::{
    Admission, Defence, Dial, EffectivePolicy, Flow, FlowFacts, Handling, Limits, Reason, SeenBytes, Sniffed, Step,
    canonical_address,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

use crate::audit::{Decision, Kind, Record};
use crate::dns;
use crate::flow::Registered;
use crate::gateway::Gateway;
use crate::hello::{self, ClientHello, Look};
use crate::http1;
use crate::intercept;
use crate::locks::lock;
use crate::relay::{Meter, relay};
use crate::report;
use crate::sandbox::{Current, Sandbox};

const FIRST_BYTE: Duration = Duration::from_secs(3);
const WHOLE_HELLO: Duration = Duration::from_secs(5);
/// A head of HTTP/1 may be longer than a hello.
const MAX_SNIFFED_BYTES: usize = 64 * 1024 + hello::MAX_BYTES;
const CONNECT: Duration = Duration::from_secs(10);
const MAX_ADDRESSES: usize = 4;
/// A connection that is open this long is in the audit even if it stays open.
const REPORT_AFTER: Duration = Duration::from_secs(1);
const EMFILE_PAUSE: Duration = Duration::from_millis(50);
const POSTGRES_TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const DNS_PORT: u16 = 53;
const DNS_TCP_IDLE: Duration = Duration::from_secs(10);
const MAX_DNS_QUESTIONS: usize = 64;

/// Take connections for ever.
pub async fn serve(gateway: Arc<Gateway>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let guest = GuestStream::new(stream);
                // Nobody else than the kernel knows as a sandbox.
                if let Some(sandbox) = gateway.sandbox(peer.ip()) {
                    let cpu = sandbox.cpu().clone();
                    // What accepting took is its own too.
                    cpu.during(|| cpu.spawn(accepted(Arc::clone(&gateway), sandbox, guest)));
                }
            }
            // No descriptors left: those who are here get a chance to leave.
            Err(_) => tokio::time::sleep(EMFILE_PAUSE).await,
        }
    }
}

/// A guest's connection. It ends with a reset unless it was shut down: a refusal must not look like an end.
pub struct GuestStream {
    /// Bytes that were read to decide, and that whoever serves the connection reads again.
    prefix: BytesMut,
    stream: TcpStream,
    orderly: bool,
}

impl GuestStream {
    fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self {
            prefix: BytesMut::new(),
            stream,
            orderly: false,
        }
    }

    /// Let the connection end with a reset after all.
    pub fn abort(&mut self) {
        self.orderly = false;
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        if !self.orderly {
            reset(&self.stream);
        }
    }
}

/// Make the end of this connection a reset.
pub fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

async fn accepted(gateway: Arc<Gateway>, sandbox: Arc<Sandbox>, mut guest: GuestStream) {
    let Ok(destination) = guest.stream.local_addr() else {
        return;
    };
    let destination = SocketAddr::new(canonical_address(destination.ip()), destination.port());
    // Before anything is read: whoever says nothing, or little by little, has a place like everybody.
    let place = Arc::clone(&sandbox.places).try_acquire_owned();
    if (place.is_err() || !lock(&sandbox.arrivals).take()) && Defence::Places.holds() {
        return refuse(&sandbox, destination, &Refused::new(Reason::Limit));
    }
    if destination.port() == DNS_PORT && Defence::EveryServer.holds() {
        return dns_over_tcp(gateway, sandbox, guest).await;
    }
    let admitted = match admit(&gateway, &sandbox, &mut guest, destination).await {
        Ok(admitted) => admitted,
        // The guest sees it once it is recorded.
        Err(refusal) => return refuse(&sandbox, destination, &refusal),
    };
    if let Err(refusal) = admitted.carry(guest).await {
        refuse(&sandbox, destination, &refusal);
    }
}

fn refuse(sandbox: &Sandbox, destination: SocketAddr, refusal: &Refused) {
    let record = report::record(&sandbox.current(), refusal.kind, Decision::Deny, refusal.reason);
    let name = refusal.name.clone();
    let mut record = record.dst_original(destination);
    if let Some(raw) = &refusal.raw {
        record = record.sni_raw(raw);
    }
    if let Some(name) = &name {
        record = record.name(name);
    }
    sandbox.report(record);
    sandbox
        .counters
        .tally(name.as_deref().unwrap_or(&destination.ip().to_string()), |tally| {
            tally.denied += 1;
        });
}

async fn dns_over_tcp(gateway: Arc<Gateway>, sandbox: Arc<Sandbox>, mut guest: GuestStream) {
    let place = sandbox.dns_streams.try_acquire();
    if (place.is_err() && Defence::DnsStreams.holds()) || !lock(&sandbox.arrivals).take() {
        let record = report::record(&sandbox.current(), Kind::Dns, Decision::Deny, Reason::Limit);
        return sandbox.report(record);
    }
    for _ in 0..MAX_DNS_QUESTIONS {
        let Ok(Ok(length)) = timeout(DNS_TCP_IDLE, guest.read_u16()).await else {
            return;
        };
        let mut question = vec![0; usize::from(length)];
        let Ok(Ok(_)) = timeout(DNS_TCP_IDLE, guest.read_exact(&mut question)).await else {
            return;
        };
        let Some(answer) = dns::answer(&gateway, &sandbox, &question, false).await else {
            return;
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return;
        };
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        if guest.write_all(&framed).await.is_err() {
            return;
        }
    }
    let _ = guest.shutdown().await;
}

/// Why a connection was refused.
struct Refused {
    kind: Kind,
    reason: Reason,
    name: Option<String>,
    raw: Option<Vec<u8>>,
}

impl Refused {
    fn new(reason: Reason) -> Self {
        Self {
            kind: Kind::Tcp,
            reason,
            name: None,
            raw: None,
        }
    }

    fn about(reason: Reason, seen: &Seen) -> Self {
        let (kind, raw) = match seen {
            Seen::Tls(hello) | Seen::Postgres(hello) => (Kind::Tls, hello.server_name.clone()),
            Seen::Http(host) => (Kind::Http, host.clone()),
            _ => (Kind::Tcp, None),
        };
        let name = raw
            .as_ref()
            .map(|raw| String::from_utf8_lossy(raw).to_ascii_lowercase());
        Self {
            kind,
            reason,
            name,
            raw,
        }
    }
}

/// What the first bytes were.
enum Seen {
    Tls(ClientHello),
    Postgres(ClientHello),
    Http(Option<Vec<u8>>),
    Http2,
    Other,
    Silent,
    Broken,
}

impl Seen {
    fn sniffed(&self) -> Sniffed<'_> {
        match self {
            Self::Tls(hello) => Sniffed::Tls {
                server_name: hello.server_name.as_deref(),
            },
            Self::Postgres(hello) => Sniffed::Postgres {
                server_name: hello.server_name.as_deref(),
            },
            Self::Http(host) => Sniffed::Http { host: host.as_deref() },
            Self::Http2 => Sniffed::Http2,
            Self::Other => Sniffed::Other,
            Self::Silent => Sniffed::Silent,
            Self::Broken => Sniffed::Broken,
        }
    }

    /// To be kept with the flow; `None` for what no policy admits.
    fn kept(&self) -> Option<SeenBytes> {
        match self {
            Self::Tls(hello) => Some(SeenBytes::Tls(hello.server_name.clone())),
            Self::Postgres(hello) => Some(SeenBytes::Postgres(hello.server_name.clone())),
            Self::Http(host) => Some(SeenBytes::Http(host.clone())),
            Self::Other => Some(SeenBytes::Other),
            Self::Silent => Some(SeenBytes::Silent),
            Self::Http2 | Self::Broken => None,
        }
    }
}

/// What a connection is for, as soon as that is known.
async fn admit(
    gateway: &Arc<Gateway>,
    sandbox: &Arc<Sandbox>,
    guest: &mut GuestStream,
    destination: SocketAddr,
) -> Result<Admitted, Refused> {
    let flow = Flow {
        destination,
        virtual_name: dns::virtual_name(&sandbox.dns, destination.ip()),
    };
    let mut seen: Option<Seen> = None;
    loop {
        if sandbox.is_gone() {
            return Err(Refused::new(Reason::Revoked));
        }
        // Anew whenever the policy changes before the flow is on the table.
        let current = sandbox.current();
        let step = match &seen {
            None => current.policy.accept(&flow),
            Some(seen) => current.policy.decide(&flow, &seen.sniffed()),
        };
        let admission = match step {
            Step::NeedBytes => {
                seen = Some(sniff(&mut guest.stream, &mut guest.prefix).await);
                continue;
            }
            Step::Refuse(reason) => {
                return Err(seen
                    .as_ref()
                    .map_or_else(|| Refused::new(reason), |seen| Refused::about(reason, seen)));
            }
            Step::Admit(admission) => admission,
        };
        let facts = FlowFacts {
            flow: flow.clone(),
            seen: seen.as_ref().and_then(Seen::kept),
            admission: admission.clone(),
            dialled: None,
            exchanges: Vec::new(),
        };
        let Ok(registered) = sandbox.flows.register(facts, current.version) else {
            continue;
        };
        return Ok(Admitted {
            gateway: Arc::clone(gateway),
            sandbox: Arc::clone(sandbox),
            current,
            flow,
            admission,
            seen: seen.unwrap_or(Seen::Other),
            registered,
        });
    }
}

async fn sniff(stream: &mut TcpStream, buffer: &mut BytesMut) -> Seen {
    let mut first = true;
    let mut limit = Instant::now() + FIRST_BYTE;
    loop {
        match timeout_at(limit, stream.read_buf(buffer)).await {
            Err(_) if first => return Seen::Silent,
            // Half a greeting is no greeting.
            Err(_) | Ok(Ok(0) | Err(_)) => return if first { Seen::Silent } else { Seen::Broken },
            Ok(Ok(_)) if first => {
                first = false;
                // For all of it: one byte at a time must not make it longer.
                limit = Instant::now()
                    + if Defence::HeadTime.holds() {
                        WHOLE_HELLO
                    } else {
                        CONNECT * 10
                    };
            }
            Ok(Ok(_)) => {}
        }
        if let Some(seen) = look(stream, buffer).await {
            return seen;
        }
        if buffer.len() > MAX_SNIFFED_BYTES {
            return Seen::Broken;
        }
    }
}

async fn look(stream: &mut TcpStream, buffer: &mut BytesMut) -> Option<Seen> {
    match hello::sniff(buffer) {
        Look::NeedMore if !Defence::WholeHello.holds() => Some(Seen::Other),
        Look::NeedMore => None,
        Look::Tls(hello) => Some(Seen::Tls(hello)),
        Look::PostgresTls => Some(postgres(stream, buffer).await),
        Look::PostgresGss => {
            buffer.advance(POSTGRES_TLS.len());
            if stream.write_all(b"N").await.is_err() {
                return Some(Seen::Broken);
            }
            None
        }
        Look::Http1 => match http1::read_head(buffer, &http1::HeadLimits::default()) {
            Ok(None) if buffer.len() <= MAX_SNIFFED_BYTES => None,
            Ok(None) | Err(_) => Some(Seen::Broken),
            Ok(Some((head, _))) => {
                let mut hosts = head.values(b"host");
                let host = hosts.next().map(<[u8]>::to_vec);
                Some(if hosts.next().is_some() {
                    Seen::Broken
                } else {
                    Seen::Http(host)
                })
            }
        },
        Look::Http2Preface if !Defence::CleartextHttp2.holds() => Some(Seen::Other),
        Look::Http2Preface => Some(Seen::Http2),
        Look::Other => Some(Seen::Other),
        Look::Broken(_) if !Defence::StrictHello.holds() => Some(Seen::Other),
        Look::Broken(_) => Some(Seen::Broken),
    }
}

/// Postgres's way into TLS: the server says `S` before the client greets.
async fn postgres(stream: &mut TcpStream, buffer: &mut BytesMut) -> Seen {
    buffer.advance(POSTGRES_TLS.len());
    if !buffer.is_empty() || stream.write_all(b"S").await.is_err() {
        // Bytes before our answer would be read by somebody as what comes after it.
        return Seen::Broken;
    }
    loop {
        match timeout(WHOLE_HELLO, stream.read_buf(buffer)).await {
            Ok(Ok(count)) if count > 0 && buffer.len() <= MAX_SNIFFED_BYTES => {}
            _ => return Seen::Broken,
        }
        match hello::sniff(buffer) {
            Look::NeedMore => {}
            Look::Tls(hello) => return Seen::Postgres(hello),
            _ => return Seen::Broken,
        }
    }
}

/// A flow that the policy admits.
struct Admitted {
    gateway: Arc<Gateway>,
    sandbox: Arc<Sandbox>,
    current: Arc<Current>,
    flow: Flow,
    admission: Admission,
    seen: Seen,
    registered: Registered,
}

impl Admitted {
    async fn carry(mut self, guest: GuestStream) -> Result<(), Refused> {
        if !self.admission.handling.is_intercepted() {
            return self.splice(guest).await;
        }
        let served = intercept::Served {
            gateway: Arc::clone(&self.gateway),
            sandbox: Arc::clone(&self.sandbox),
            flow: Arc::clone(&self.registered.flow),
            destination: self.flow.destination,
            rules: Arc::default(),
        };
        let hello = match &self.seen {
            Seen::Tls(hello) => Some(hello),
            _ => None,
        };
        match intercept::serve(served, hello, guest).await {
            Err(reason) if self.registered.flow.kill.reason().is_none() => Err(Refused::about(reason, &self.seen)),
            _ => {
                self.ended(None);
                Ok(())
            }
        }
    }

    async fn splice(&mut self, mut guest: GuestStream) -> Result<(), Refused> {
        let flow = Arc::clone(&self.registered.flow);
        let connected = tokio::select! {
            biased;
            _ = flow.kill.wait() => { self.ended(None); return Ok(()); }
            connected = self.connect() => connected,
        };
        let (mut server, address) = connected.map_err(|reason| Refused::about(reason, &self.seen))?;
        let key = self
            .admission
            .name()
            .map_or_else(|| self.flow.destination.ip().to_string(), ToString::to_string);
        self.sandbox.counters.tally(&key, |tally| tally.connections += 1);
        self.sandbox.counters.tally_under(None, |tally| tally.connections += 1);
        let meter = Meter::new(
            Arc::clone(&self.sandbox),
            Arc::clone(&flow),
            &key,
            Limits::default(),
            None,
        );
        let began = Instant::now();
        let outcome = {
            let relayed = relay(&mut guest, &mut server, &meter, &flow.kill);
            tokio::pin!(relayed);
            let soon = tokio::select! {
                outcome = &mut relayed => Some(outcome),
                () = tokio::time::sleep(REPORT_AFTER) => None,
            };
            self.opened(address, began);
            match soon {
                Some(outcome) => outcome,
                None => relayed.await,
            }
        };
        if let Err(reason) = outcome {
            guest.abort();
            // The server must see a reset too, not an end that looks complete.
            reset(&server);
            self.ended(Some(reason));
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<(TcpStream, SocketAddr), Reason> {
        let flows = &self.sandbox.flows;
        let (mut server, address) = loop {
            let addresses =
                candidates(&self.gateway, &self.sandbox, &self.current, &self.admission, &self.flow).await?;
            let connected = dial(&addresses, self.admission.port()).await?;
            if flows
                .dialled(&self.registered.flow, connected.1.ip(), self.current.version)
                .is_ok()
            {
                break connected;
            }
            // The policy changed meanwhile, and let this flow go on: its address is vetted again.
            self.current = self.sandbox.current();
            self.admission = (*self.registered.flow.admission()).clone();
        };
        if self.admission.handling == Handling::SplicePostgres {
            let mut answer = [0];
            let agreed = timeout(CONNECT, async {
                server.write_all(&POSTGRES_TLS).await?;
                server.read_exact(&mut answer).await
            })
            .await;
            if !matches!(agreed, Ok(Ok(_))) || answer != *b"S" {
                return Err(Reason::UpstreamProtocol);
            }
        }
        Ok((server, address))
    }

    /// The record of an admitted connection, with what passed until now.
    fn opened(&self, address: SocketAddr, began: Instant) {
        let kind = match self.seen {
            Seen::Tls(_) | Seen::Postgres(_) => Kind::Tls,
            _ => Kind::Tcp,
        };
        let mut record = self
            .about(report::record(
                &self.current,
                kind,
                Decision::Allow,
                self.admission.reason,
            ))
            .dst(address)
            .mode("splice")
            .dur_ms(u64::try_from(began.elapsed().as_millis()).unwrap_or(0));
        let (up, down) = self.registered.flow.bytes.read();
        let pinned = self
            .admission
            .name()
            .filter(|name| self.sandbox.is_pinned(name, self.flow.destination.ip()))
            .map(|_| self.flow.destination.ip());
        if EffectivePolicy::is_mismatch(&self.admission, &self.flow, &[address.ip()], pinned.as_slice()) {
            record = record.dst_mismatch();
        }
        self.sandbox.report(record.bytes(up, down));
    }

    /// The record of a connection that was ended before its time.
    fn ended(&self, cut: Option<Reason>) {
        let reason = self.registered.flow.kill.reason();
        let (kind, reason) = match (reason, cut) {
            (Some(reason), _) => (Kind::Revoke, reason),
            (None, Some(Reason::ByteLimit)) => (Kind::Limit, Reason::ByteLimit),
            // A peer that went away is nobody's decision.
            _ => return,
        };
        let decision = if kind == Kind::Revoke {
            Decision::Revoked
        } else {
            Decision::Deny
        };
        let (up, down) = self.registered.flow.bytes.read();
        let record = report::record(&self.sandbox.current(), kind, decision, reason);
        self.sandbox.report(self.about(record).bytes(up, down));
    }

    fn about(&self, record: Record) -> Record {
        let mut record = record.dst_original(self.flow.destination);
        if let Some(name) = self.admission.name() {
            record = record.name(name.as_str());
        }
        if let Some(pattern) = self
            .admission
            .name()
            .and_then(|name| self.current.policy.tenant().pattern_of(name))
        {
            record = record.pattern(pattern.as_str());
        }
        if let Seen::Tls(hello) = &self.seen
            && let Some(raw) = &hello.server_name
        {
            record = record.sni_raw(raw);
        }
        record
    }
}

/// The addresses that may be dialled for a flow.
pub async fn candidates(
    gateway: &Gateway,
    sandbox: &Sandbox,
    current: &Current,
    admission: &Admission,
    flow: &Flow,
) -> Result<Vec<IpAddr>, Reason> {
    let resolved = match &admission.dial {
        Dial::Original(address) => vec![address.ip()],
        Dial::Name(name, _) => {
            let answer = dns::resolve(gateway, sandbox, &current.policy, name, RecordType::A).await?;
            if answer.addresses.is_empty() {
                return Err(Reason::UpstreamConnect);
            }
            // The guest's own choice first, if it is one of them: it may have a reason.
            let mut addresses = answer.addresses;
            let wanted = canonical_address(flow.destination.ip());
            addresses.sort_by_key(|address| *address != wanted);
            addresses
        }
    };
    current.policy.dial(admission, &resolved)
}

/// Connect to the first of these that answers.
pub async fn dial(addresses: &[IpAddr], port: u16) -> Result<(TcpStream, SocketAddr), Reason> {
    let attempt = async {
        let mut refusal = Reason::UpstreamConnect;
        let share = CONNECT / u32::try_from(addresses.len().clamp(1, MAX_ADDRESSES)).unwrap_or(1);
        for &address in addresses.iter().take(MAX_ADDRESSES) {
            let address = SocketAddr::new(address, port);
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, address));
                }
                Ok(Err(_)) => refusal = Reason::UpstreamConnect,
                Err(_) => refusal = Reason::UpstreamTimeout,
            }
        }
        Err(refusal)
    };
    timeout(CONNECT, attempt).await.unwrap_or(Err(Reason::UpstreamTimeout))
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let count = self.prefix.len().min(buffer.remaining());
            buffer.put_slice(&self.prefix[..count]);
            self.prefix.advance(count);
            if self.prefix.is_empty() {
                self.prefix = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.orderly = true;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
