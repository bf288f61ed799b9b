//! Questions to the sandbox's name server, and answers of the servers that it asks.

#![no_main]

use std::sync::LazyLock;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use hutch_fuzz::{ALLOWED, gateway, runtime, sandbox};
use hutch_net::dns;
use hutch_net::dns::resolver::parse;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;

thread_local! {
    static RUNTIME: LazyLock<Runtime> = const { LazyLock::new(runtime) };
}

fuzz_target!(|data: &[u8]| {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let sandbox = sandbox().await;
            for is_datagram in [true, false] {
                if let Some(reply) = dns::answer(&gateway(), &sandbox, data, is_datagram).await {
                    check(data, &reply, is_datagram);
                }
            }
        });
    });
    let name = Name::from_ascii("api.test.").expect("a name");
    if let Some(reply) = parse(data, 7, &name, RecordType::A) {
        assert_eq!(reply.metadata.id, 7, "an answer to another question");
        assert!(reply.queries.len() == 1 && reply.queries[0].name == name);
    }
});

fn check(asked: &[u8], reply: &[u8], is_datagram: bool) {
    assert!(!is_datagram || reply.len() <= 1232);
    assert_eq!(reply[..2], asked[..2], "the number is another one");
    let reply = Message::from_vec(reply).expect("what we say is DNS");
    if !reply.answers.is_empty() {
        let name = reply.queries[0].name.to_ascii().to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        assert!(
            ALLOWED.contains(&name) || name.ends_with(".wild.test"),
            "{name} is answered"
        );
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    }
}
