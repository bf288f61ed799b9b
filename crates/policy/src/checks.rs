//! What a rule must not do, given its pattern and its policy.

use std::collections::HashMap;

use crate::compile::{Compiler, PolicyError, Role};
use crate::decide::http::is_identity_header;
use crate::defence::Defence;
use crate::json::Node;
use crate::names::{Host, parse_authority};
use crate::pattern::Pattern;
use crate::policy::Policy;
use crate::rules::{Action, MIN_SCRUBBED_BYTES, Rule, Transform, Value};

/// Ports whose traffic cannot be inspected: mail, plain HTTP, Postgres.
const UNINSPECTED_PORTS: [u16; 3] = [25, 80, 5432];

impl Compiler<'_> {
    pub(crate) fn check_rule(
        &mut self,
        policy: &Policy,
        pattern: &Pattern,
        rule: &Rule,
        node: &Node,
    ) -> Result<(), PolicyError> {
        if self.context.role == Role::Bounds && (rule.injects() || matches!(rule.action, Action::Forward(_))) {
            return Err(
                node.error("should NOT put anything into requests or send them elsewhere in a policy of bounds")
            );
        }
        let Action::Transform(transform) = &rule.action else {
            return Ok(());
        };
        for edit in &transform.headers {
            check_injected_header(pattern, &edit.name, &edit.value, node)?;
        }
        if !rule.injects() {
            return Ok(());
        }
        if pattern.is_broad() && !rule.acknowledge_broad {
            return Err(node.error(format!(
                "should NOT put anything into requests to {pattern}, which covers names of strangers, without \
                 `acknowledgeBroad: true`"
            )));
        }
        if let Some(ports) = &policy.defaults.ports
            && ports.iter().all(|port| UNINSPECTED_PORTS.contains(port))
        {
            return Err(
                node.error("should NOT put anything into requests: no port in `defaults.ports` can be inspected")
            );
        }
        self.check_scrubbing(transform, rule, node)?;
        if is_shared_by_strangers(pattern) && rule.matcher.path.is_none() {
            self.warn(
                node,
                "multi_tenant",
                format!("injects at {pattern}, where strangers have space too; match a path"),
            );
        }
        Ok(())
    }

    fn check_scrubbing(&mut self, transform: &Transform, rule: &Rule, node: &Node) -> Result<(), PolicyError> {
        let short =
            |value: &Value| matches!(value, Value::Literal(secret) if secret.expose().len() < MIN_SCRUBBED_BYTES);
        if rule.scrubs() && transform.values().any(short) {
            let message =
                format!("has a value of less than {MIN_SCRUBBED_BYTES} bytes, too short to be found in responses");
            if rule.scrub == Some(true) && Defence::ShortSecrets.holds() {
                return Err(node.error(message));
            }
            self.warn(node, "value_too_short_to_scrub", message);
        }
        Ok(())
    }
}

/// Headers that belong to the connection, to the gateway or to another party.
fn check_injected_header(pattern: &Pattern, name: &str, value: &Value, node: &Node) -> Result<(), PolicyError> {
    const CONNECTION: [&str; 7] = [
        "connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "keep-alive",
    ];
    // Servers that turn names into variables read `_` and `-` alike.
    let folded = name.replace('_', "-");
    if CONNECTION.contains(&folded.as_str()) || folded.starts_with("proxy-") {
        return Err(node.error(format!(
            "should NOT set the header {name}, which belongs to the connection"
        )));
    }
    if is_identity_header(name.as_bytes()) {
        return Err(node.error(format!(
            "should NOT set the header {name}, by which the gateway says who asks"
        )));
    }
    if folded != "host" {
        return Ok(());
    }
    let covered = match value {
        Value::Literal(secret) => match parse_authority(secret.expose().as_bytes()) {
            Ok((Host::Name(host), _)) => pattern.covers(&host),
            _ => false,
        },
        Value::Credential(_) => false,
    };
    if name == "host" && covered {
        Ok(())
    } else {
        Err(node.error(format!(
            "should NOT set the header host to anything but a name that {pattern} covers"
        )))
    }
}

/// Names at which anybody can get an account and receive what others send.
fn is_shared_by_strangers(pattern: &Pattern) -> bool {
    const SHARED: [&str; 15] = [
        "api.github.com",
        "gist.github.com",
        "github.com",
        "gitlab.com",
        "huggingface.co",
        "pastebin.com",
        "storage.googleapis.com",
        "upload.pypi.org",
        "amazonaws.com",
        "blob.core.windows.net",
        "cloudfront.net",
        "r2.cloudflarestorage.com",
        "workers.dev",
        "vercel.app",
        "netlify.app",
    ];
    let text = pattern.as_str().trim_start_matches("*.");
    SHARED.contains(&text) || (text.ends_with(".amazonaws.com") && text.contains("s3"))
}

/// A variable stands for one credential.
pub(crate) fn check_placeholders(policy: &Policy) -> Result<(), PolicyError> {
    let mut owners = HashMap::new();
    for (variable, credential) in policy.placeholders() {
        if owners
            .insert(variable, credential)
            .is_some_and(|other| other != credential)
        {
            let message = format!("should NOT use the variable {variable} for two credentials");
            return Err(PolicyError::new(String::new(), message));
        }
    }
    Ok(())
}
