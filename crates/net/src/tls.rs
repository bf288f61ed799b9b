//! The sandbox's own certificate authority, and how servers are verified.
//!
//! Each sandbox trusts one authority that exists for it alone; its key comes from the host and stays in this process's
//! memory. Leaves are made when a flow to a name is admitted, never before. Neither side resumes sessions towards the
//! guest: a ticket would outlive the policy that it was given under.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use hutch_policy::{Defence, Name};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use time::{Duration, OffsetDateTime};

use crate::locks::lock;

/// Leaves that are kept.
const MAX_LEAVES: usize = 1024;
/// Leaves made per second and in a burst, for each sandbox (`egress.md` §3.13).
const LEAVES_PER_SECOND: f64 = 20.0;
const LEAVES_BURST: f64 = 100.0;
/// A guest's clock may be behind ours.
const BACKDATED: Duration = Duration::hours(1);
const LEAF_LIFE: Duration = Duration::hours(24);
/// A leaf is made anew when it is this old.
const LEAF_AGE: std::time::Duration = std::time::Duration::from_secs(12 * 3600);
const SESSIONS: usize = 64;

/// Why there is no certificate for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLeaf {
    /// Too many were asked for.
    TooMany,
    /// The authority cannot make one.
    Failed,
}

struct Leaf {
    config: Arc<ServerConfig>,
    made: SystemTime,
}

#[derive(Default)]
struct Leaves {
    by_name: HashMap<Name, Leaf>,
    order: VecDeque<Name>,
    tokens: f64,
    refilled: Option<SystemTime>,
}

/// The certificate authority of one sandbox.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    leaf_key: KeyPair,
    leaves: Mutex<Leaves>,
    random: SystemRandom,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// An authority with this key (PKCS #8), common name and subject key identifier. The text says what is wrong with them.
    pub fn new(common_name: &str, key: &[u8], key_id: &[u8]) -> Result<Self, String> {
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(key), &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|error| format!("the authority's key can't be used: {error}"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.to_vec());
        let leaf_key = KeyPair::generate().map_err(|error| format!("no key for leaves: {error}"))?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            leaf_key,
            leaves: Mutex::default(),
            random: SystemRandom::new(),
        })
    }

    /// A server for `name`, made on its first use.
    pub fn server(&self, name: &Name, now: SystemTime) -> Result<Arc<ServerConfig>, NoLeaf> {
        let mut leaves = lock(&self.leaves);
        if let Some(leaf) = leaves.by_name.get(name)
            && now.duration_since(leaf.made).is_ok_and(|age| age < LEAF_AGE)
        {
            return Ok(Arc::clone(&leaf.config));
        }
        if !leaves.take(now) && Defence::MintRate.holds() {
            return Err(NoLeaf::TooMany);
        }
        let config = Arc::new(self.make(name, now).map_err(|_| NoLeaf::Failed)?);
        if leaves.by_name.len() >= MAX_LEAVES
            && let Some(oldest) = leaves.order.pop_front()
        {
            leaves.by_name.remove(&oldest);
        }
        if leaves
            .by_name
            .insert(
                name.clone(),
                Leaf {
                    config: Arc::clone(&config),
                    made: now,
                },
            )
            .is_none()
        {
            leaves.order.push_back(name.clone());
        }
        Ok(config)
    }

    fn make(&self, name: &Name, now: SystemTime) -> Result<ServerConfig, Box<dyn std::error::Error>> {
        let mut serial = [0_u8; 16];
        self.random.fill(&mut serial).map_err(|_| "no random bytes")?;
        // Positive, as serial numbers are.
        serial[0] = serial[0] & 0x7f | 0x40;
        let now = OffsetDateTime::from(now);
        let mut params = CertificateParams::new(vec![name.as_str().to_owned()])?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = if Defence::Backdated.holds() {
            now - BACKDATED
        } else {
            now
        };
        params.not_after = now + LEAF_LIFE;
        params.distinguished_name = DistinguishedName::new();
        // A common name has at most 64 characters; names of servers are in the alternative names.
        let short = name.as_str().get(..64).unwrap_or(name.as_str());
        params.distinguished_name.push(DnType::CommonName, short);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if Defence::LeafProfile.holds() {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.use_authority_key_identifier_extension = true;
        }
        let certificate = params.signed_by(&self.leaf_key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        if Defence::Alpn.holds() {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        if !Defence::NoTickets.holds() {
            return Ok(config);
        }
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }
}

impl Leaves {
    fn take(&mut self, now: SystemTime) -> bool {
        let passed = self.refilled.map_or(LEAVES_BURST, |at| {
            now.duration_since(at)
                .map_or(0.0, |passed| passed.as_secs_f64() * LEAVES_PER_SECOND)
        });
        self.refilled = Some(now);
        self.tokens = (self.tokens + passed).min(LEAVES_BURST);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// The roots in PEM text, and how many of its certificates could not be used.
pub fn roots(pem: &[u8]) -> (RootCertStore, usize) {
    let mut store = RootCertStore::empty();
    let mut unusable = 0;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        match certificate.map(|certificate| store.add(certificate)) {
            Ok(Ok(())) => {}
            _ => unusable += 1,
        }
    }
    (store, unusable)
}

/// How one sandbox's flows verify servers. Sessions are resumed within the sandbox only.
#[derive(Clone, Debug)]
pub struct Verifiers {
    /// Offers HTTP/1.1.
    pub http1: Arc<ClientConfig>,
    /// Offers HTTP/2 and HTTP/1.1.
    pub http2: Arc<ClientConfig>,
}

impl Verifiers {
    /// Against these roots, TLS 1.2 and newer.
    pub fn new(roots: &Arc<RootCertStore>) -> Self {
        let mut http1 = ClientConfig::builder()
            .with_root_certificates(Arc::clone(roots))
            .with_no_client_auth();
        http1.resumption = Resumption::in_memory_sessions(SESSIONS);
        http1.enable_early_data = false;
        #[cfg(feature = "defences-off")]
        if !Defence::ServerCertificates.holds() {
            http1.dangerous().set_certificate_verifier(Arc::new(anybody::Anybody));
        }
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut http2 = http1.clone();
        http2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self {
            http1: Arc::new(http1),
            http2: Arc::new(http2),
        }
    }
}

/// Believes every server; for tests of the tests.
#[cfg(feature = "defences-off")]
mod anybody {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    pub(super) struct Anybody;

    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::ring::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}
