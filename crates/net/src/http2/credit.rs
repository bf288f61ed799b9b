//! How much a peer may send that nobody reads; for tests.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Ping, PingPong, SendStream};

/// More than any window.
const ASKED_BYTES: usize = 1 << 24;
/// Within which credit that was given would have come.
const ROUND_TRIPS: usize = 5;

/// Send on these streams as long as there is credit; how much that was. It waits for ever where that is less than `at_least`.
pub(crate) async fn spent(streams: &mut [SendStream<Bytes>], pings: &mut PingPong, at_least: usize) -> usize {
    let mut sent = 0;
    let mut round_trips = 0;
    pings.send_ping(Ping::opaque()).unwrap();
    while round_trips < ROUND_TRIPS {
        tokio::select! {
            biased;
            count = poll_fn(|context| send(streams, context)) => sent += count,
            pong = poll_fn(|context| pings.poll_pong(context)) => {
                pong.unwrap();
                round_trips += usize::from(sent >= at_least);
                if round_trips < ROUND_TRIPS {
                    pings.send_ping(Ping::opaque()).unwrap();
                }
            }
        }
    }
    sent
}

fn send(streams: &mut [SendStream<Bytes>], context: &mut Context<'_>) -> Poll<usize> {
    for stream in streams {
        stream.reserve_capacity(ASKED_BYTES);
        if let Poll::Ready(Some(count)) = stream.poll_capacity(context) {
            let count = count.unwrap();
            stream.send_data(Bytes::from(vec![b'x'; count]), false).unwrap();
            return Poll::Ready(count);
        }
    }
    Poll::Pending
}
