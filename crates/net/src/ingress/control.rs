//! What the host says, on a private socket, as it does to the gateway (`requests`).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use hutch_wire::{ErrorMessage, encode};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::counts::Counted;
use super::registry::{Configuration, Ingress, SandboxRoutes, Target};
use crate::requests::{self, NOTHING, Outcome, Request, bad, read};

const MAX_BODY_BYTES: usize = 64 << 20;
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutRoutes {
    sandboxes: Vec<SandboxRoutes>,
    #[serde(default)]
    complete: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutTargets {
    targets: Vec<PutTarget>,
    #[serde(default)]
    complete: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutTarget {
    sandbox: String,
    session: String,
    address: Ipv4Addr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveTarget {
    sandbox: String,
    session: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    sandbox: String,
}

#[derive(Serialize)]
struct State {
    connections: u64,
    routes: u64,
    complete: bool,
    #[serde(flatten)]
    counted: Counted,
}

#[derive(Serialize)]
struct Wake {
    sandbox: String,
}

/// Serve the host, for ever. What one said stays when it goes away.
pub async fn serve(ingress: Arc<Ingress>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let ingress = Arc::clone(&ingress);
        tokio::spawn(async move {
            let mut connection = Connection {
                ingress,
                host: requests::Connection::new(stream, MAX_BODY_BYTES),
                wakes: None,
            };
            let _ = connection.run().await;
            if let Some(wakes) = connection.wakes.take() {
                connection.ingress.give_wakes(wakes);
            }
        });
    }
}

struct Connection {
    ingress: Arc<Ingress>,
    host: requests::Connection,
    wakes: Option<mpsc::UnboundedReceiver<String>>,
}

impl Connection {
    async fn run(&mut self) -> std::io::Result<()> {
        loop {
            if self.host.flush().await? {
                continue;
            }
            if self.host.is_followed() && self.wakes.is_none() {
                // A former host's connection may not have ended yet.
                self.wakes = self.ingress.take_wakes();
            }
            let waits = self.host.is_followed() && self.wakes.is_none();
            let Self { host, wakes, .. } = &mut *self;
            let wake = async {
                match wakes {
                    Some(wakes) => wakes.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                requests = host.requests() => {
                    let Some(requests) = requests? else { return Ok(()) };
                    for request in requests {
                        self.answer(&request);
                    }
                }
                Some(sandbox) = wake => self.host.push(encode(&Wake { sandbox })),
                () = tokio::time::sleep(LOOK_AGAIN), if waits => {}
            }
        }
    }

    fn answer(&mut self, request: &Request) {
        if request.method == "wakes" {
            self.host.follow(request.stream);
            return;
        }
        let outcome = answer(&self.ingress, &request.method, &request.body);
        self.host.answer(request.stream, outcome);
    }
}

fn answer(ingress: &Ingress, method: &str, body: &[u8]) -> Outcome {
    match method {
        "configure" => ingress.configure(read::<Configuration>(body)?).map_err(bad)?,
        "key" => ingress.verify_with(&read::<Key>(body)?.key).map_err(bad)?,
        "open" => ingress.open(),
        "routes.put" => {
            let put: PutRoutes = read(body)?;
            ingress.put_routes(put.sandboxes, put.complete);
        }
        "targets.put" => {
            let put: PutTargets = read(body)?;
            if put.complete {
                let kept = put
                    .targets
                    .iter()
                    .map(|target| (target.sandbox.clone(), target.session.clone()));
                ingress.keep_targets(&kept.collect());
            }
            for target in put.targets {
                ingress.put_target(&target.sandbox, Target::new(target.session, target.address));
            }
        }
        "targets.remove" => {
            let which: RemoveTarget = read(body)?;
            ingress.remove_target(&which.sandbox, &which.session);
        }
        "wake.failed" => ingress.not_waked(&read::<Which>(body)?.sandbox),
        "state" => {
            return Ok(encode(&State {
                connections: ingress.connections() as u64,
                routes: ingress.route_count() as u64,
                complete: ingress.complete(),
                counted: ingress.counts.counted(),
            }));
        }
        _ => {
            return Err(ErrorMessage::new(
                404,
                "unknown_method",
                format!("The ingress has no method '{method}'."),
            ));
        }
    }
    Ok(NOTHING.to_vec())
}
