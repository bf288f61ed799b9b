//! Frames of HTTP/2 on an intercepted connection: it ends, and every answer is one of those that the policy has.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use hutch_fuzz::{admitted, destination, gateway, runtime, sandbox};
use hutch_net::exchange::Served;
use hutch_net::intercept::http2_connection;
use hutch_policy::{FlowFacts, SeenBytes};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Of what the gateway says to one connection.
const MAX_SAID: usize = 1 << 20;

thread_local! {
    static RUNTIME: LazyLock<Runtime> = const { LazyLock::new(runtime) };
}

fuzz_target!(|data: &[u8]| {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let outcome = tokio::time::timeout(Duration::from_secs(10), exchange(data)).await;
            assert!(outcome.is_ok(), "the connection does not end");
        });
    });
});

async fn exchange(data: &[u8]) {
    let sandbox = sandbox().await;
    let current = sandbox.current();
    let (flow, admission) = admitted(&current, "api.test");
    let facts = FlowFacts {
        flow,
        seen: Some(SeenBytes::Tls(Some(b"api.test".to_vec()))),
        admission,
        dialled: None,
        exchanges: Vec::new(),
    };
    let registered = sandbox
        .flows
        .register(facts, current.version)
        .expect("nothing changes the policy");
    let served = Served {
        gateway: gateway(),
        sandbox: Arc::clone(&sandbox),
        flow: Arc::clone(&registered.flow),
        destination: destination(),
        rules: Arc::default(),
    };
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let talking = async {
        let _ = client.write_all(GREETING).await;
        let _ = client.write_all(data).await;
        let _ = client.shutdown().await;
        let (mut said, mut buffer) = (0, vec![0; 4096]);
        while let Ok(count) = client.read(&mut buffer).await {
            if count == 0 {
                break;
            }
            said += count;
            assert!(said < MAX_SAID, "it says more than it was asked");
        }
    };
    let _ = tokio::join!(http2_connection(&served, server), talking);
}
