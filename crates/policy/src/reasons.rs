//! The closed list of reason codes.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+) => {
        /// Why something was allowed or refused: the `reason` of an audit record. `docs/network.md` lists every code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The code that records and answers carry.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)+
                }
            }

            /// What it means, as a sentence for people.
            pub fn description(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_start(),)+
                }
            }
        }
    };
}

reasons! {
    // Allowed.
    /// The policy is allow-all.
    AllowAll = "allow_all",
    /// The destination is in `subnets.allow`.
    Cidr = "cidr",
    /// A pattern covers the name and none of its rules changes the request.
    Domain = "domain",
    /// `*` admits a flow that has no name. As a refusal: no name, and nothing admits that.
    NoName = "no_name",
    /// A rule adds or replaces something in the request.
    Inject = "inject",
    /// A rule sends the request to its `forwardURL`.
    Forward = "forward",
    /// A rule answers in place of the server.
    Respond = "respond",
    /// No rule matched and the policy lets such requests pass.
    PassUnmatched = "pass_unmatched",
    // Refused by address.
    /// The address is in the hard-deny set.
    HardDeny = "hard_deny",
    /// The address is the gateway's or the host's own.
    SelfAddress = "self",
    /// Every address of an allowed name is in the hard-deny set or denied by a range.
    AddressClass = "address_class",
    /// The address is in `subnets.deny`.
    SubnetDeny = "subnet_deny",
    /// The policy has only ranges, and the address is in none.
    AddressDeny = "address_deny",
    /// The policy is deny-all, or allows nothing.
    DenyAll = "deny_all",
    /// TCP port 25.
    Smtp = "smtp",
    /// The port is not among those that the policy or the rule covers.
    PortDeny = "port_deny",
    /// A datagram that no range admits.
    Udp = "udp",
    // Refused by name.
    /// The name is on a block list of the operator or the organisation.
    NameBlocked = "name_blocked",
    /// No pattern covers the name.
    DomainDeny = "domain_deny",
    /// What should be a name is not one.
    NameInvalid = "name_invalid",
    /// Server name, host and authority disagree.
    NameMismatch = "name_mismatch",
    /// A name that never leaves: one label, `localhost`, `.local`, metadata.
    NameSpecial = "name_special",
    /// Bytes that are not what the connection must carry.
    ProtocolViolation = "protocol_violation",
    /// Plain HTTP to a name, and the policy does not have `plaintextHttp`.
    PlaintextHttp = "plaintext_http",
    /// A rule would add something to a request that is not encrypted.
    PlaintextCredential = "plaintext_credential",
    // DNS.
    /// The record type is not answered under this policy.
    DnsType = "dns_type",
    /// Not one question of class IN with opcode QUERY.
    DnsMalformed = "dns_malformed",
    /// Too many distinct names under one wildcard, or too many questions.
    DnsBudget = "dns_budget",
    /// Every address in the answer is in the hard-deny set.
    DnsPrivate = "dns_private",
    // HTTP.
    /// The path has more than one reading and a rule depends on it.
    AmbiguousPath = "ambiguous_path",
    /// CONNECT, TRACE or TRACK.
    MethodDeny = "method_deny",
    /// No rule matched and the policy refuses such requests.
    Unmatched = "unmatched",
    /// A placeholder was sent where it does not belong.
    PlaceholderMisuse = "placeholder_misuse",
    /// The stored credential of the rule does not exist.
    CredentialMissing = "credential_missing",
    /// The rule is disabled because its credential came back in responses.
    CredentialReflected = "credential_reflected",
    /// A secret was found in a response and masked.
    SecretReflected = "secret_reflected",
    /// A response to an injected request cannot be decoded within the limits.
    Unscannable = "unscannable",
    /// The server's certificate or TLS version is not acceptable.
    UpstreamTls = "upstream_tls",
    /// The server cannot be reached.
    UpstreamConnect = "upstream_connect",
    /// The server did not answer in time.
    UpstreamTimeout = "upstream_timeout",
    /// The server's response breaks HTTP.
    UpstreamProtocol = "upstream_protocol",
    // Limits and time.
    /// A byte limit of the policy or rule is used up.
    ByteLimit = "byte_limit",
    /// Too many connections, requests or bytes of a head.
    Limit = "limit",
    /// The client did not speak in time.
    ClientTimeout = "client_timeout",
    /// The policy changed and no longer admits the flow.
    Revoked = "revoked",
    /// The rule that admitted the exchange is gone or another one now.
    RuleChanged = "rule_changed",
    /// The guest dialled an address that is not one of the name's; ours was used.
    DstMismatch = "dst_mismatch",
    /// The gateway has no policy for the sandbox.
    PolicyMissing = "policy_missing",
    /// A fault of the gateway itself.
    Internal = "internal",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
