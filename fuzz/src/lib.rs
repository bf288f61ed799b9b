//! What several fuzz targets need: a gateway and a sandbox without sockets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};

use hutch_net::gateway::Gateway;
use hutch_net::sandbox::{Current, FlowLimits, Sandbox};
use hutch_net::tls::{Authority, Verifiers};
use hutch_policy::{Admission, Flow, Sniffed, Step};

/// Names of the policy below.
pub const ALLOWED: [&str; 2] = ["api.test", "x.wild.test"];

/// Every request is answered in place, and names have addresses that nobody is asked for: nothing leaves.
const POLICY: &str = r#"{
    "allow": {
        "api.test": [{"response": {"statusCode": 204}, "match": {"path": {"startsWith": "/v1/"}}}, {"response": {"statusCode": 403}}],
        "*.wild.test": []
    },
    "defaults": {"inspect": "all"},
    "dns": {"mode": "virtual"}
}"#;

static GATEWAY: LazyLock<Arc<Gateway>> = LazyLock::new(|| {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Arc::default()
});

/// The gateway.
pub fn gateway() -> Arc<Gateway> {
    Arc::clone(&GATEWAY)
}

/// A sandbox under the policy above, with every budget full.
pub async fn sandbox() -> Arc<Sandbox> {
    static KEY: LazyLock<Vec<u8>> = LazyLock::new(|| rcgen::KeyPair::generate().expect("a key").serialize_der());
    let gateway = gateway();
    let authority = Authority::new("fuzz", &KEY, &[7; 20]).expect("the key is one");
    let roots = Arc::new(rustls::RootCertStore::empty());
    let sandbox = Arc::new(Sandbox::new(
        Ipv4Addr::new(100, 64, 0, 2),
        Ipv4Addr::new(100, 64, 0, 1),
        authority,
        Verifiers::new(&roots),
        gateway.closed(),
        FlowLimits {
            at_once: 64,
            per_second: 1000,
        },
        Arc::default(),
    ));
    let policy = gateway.compile(Some(POLICY), &[]).expect("the policy is one");
    sandbox
        .update(1, policy, std::collections::HashMap::new(), Vec::new())
        .await;
    sandbox
}

/// What admits a TLS connection to `name`.
pub fn admitted(current: &Current, name: &str) -> (Flow, Admission) {
    let flow = Flow {
        destination: destination(),
        virtual_name: None,
    };
    let seen = Sniffed::Tls {
        server_name: Some(name.as_bytes()),
    };
    let Step::Admit(admission) = current.policy.decide(&flow, &seen) else {
        panic!("the flow is not allowed")
    };
    (flow, admission)
}

/// Where flows go.
pub fn destination() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 8], 443))
}

/// A runtime without threads.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}

/// Cuts the input into pieces of these sizes, over and over.
pub fn pieces<'a>(data: &'a [u8], sizes: &[u8]) -> Vec<&'a [u8]> {
    let mut rest = data;
    let mut found = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at(usize::from(*size).clamp(1, rest.len()));
        found.push(piece);
        rest = behind;
    }
    found
}
