//! Defences that a test can switch off, to show that it fails without them.
//!
//! Only a build with the feature `defences-off` looks at the variable `HUTCH_DEFENCES_OFF`; in every other one
//! [`Defence::holds`] is the constant `true`, and the compiler removes what stands beside it. Each name is that of a
//! marker of the firewall's tests (`tests/egress/defences.py`).

/// Declare defences with the names by which tests know them.
macro_rules! defences {
    ($($variant:ident $name:literal $about:literal;)*) => {
        /// What stands between a guest and something that it must not have.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Defence {
            $(#[doc = $about] $variant,)*
        }

        impl Defence {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As in `HUTCH_DEFENCES_OFF`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

defences! {
    DomainPatterns "domain-patterns" "A name that no pattern covers is refused.";
    UnnamedFlows "unnamed-flows" "A flow without a name needs a range.";
    NameGrammar "name-grammar" "What is no name is refused.";
    ClosedAddresses "hard-deny" "Addresses that no policy opens.";
    Smtp "smtp" "Port 25 is closed.";
    Datagrams "datagrams" "Datagrams leave only towards ranges.";
    Ports "ports" "A name is reached on ports of its own.";
    QuestionNames "question-names" "A question is decided by its name before anybody is asked.";
    QuestionTypes "question-types" "Only addresses are answered under a policy.";
    SpecialNames "special-names" "Names that mean something on this network never leave.";
    NameBudget "name-budget" "A wildcard has a budget of names.";
    VettedAddresses "vetted-addresses" "Every address of an answer is judged.";
    OwnDial "own-dial" "The gateway dials addresses that it resolved itself.";
    VirtualNames "virtual-names" "An address that stands for a name is that name's.";
    Methods "methods" "Neither tunnels nor echoes of requests.";
    OneHost "one-host" "A request says its host once.";
    HostIsName "host-is-name" "A request is for the name of its flow.";
    OnePath "one-path" "A path has one reading.";
    Matchers "matchers" "A rule holds only where it matches.";
    WholePairs "whole-pairs" "Key and value are those of one header.";
    OnceOnly "once-only" "Repeating a key does not help.";
    Unmatched "unmatched" "What no rule matches can be denied.";
    Nominated "nominated" "Nobody nominates what is injected.";
    Spellings "spellings" "Every spelling of an injected name is replaced.";
    IdentityHeaders "identity-headers" "Only the gateway says whose request it is.";
    MethodOverrides "method-overrides" "No header makes a request one of another method.";
    NoPlaintextSecrets "no-plaintext-secrets" "No credential goes out in the clear.";
    SecretPorts "secret-ports" "No credential goes out on a port that nobody named.";
    PlaceholderScope "placeholder-scope" "A placeholder works only where its rule says.";
    Searchable "searchable" "Requests forbid what could not be searched.";
    PlaintextHttp "plaintext-http" "Requests without TLS need a policy that says so.";
    QuicHints "quic-hints" "Responses do not advertise HTTP/3.";
    DatagramsEnd "datagrams-end" "Flows of datagrams end with their policy.";
    EndedSandboxes "ended-sandboxes" "What a sandbox had ends with it.";
    EmptyIsClosed "empty-is-closed" "A policy without entries admits nothing.";
    QuestionBudget "question-budget" "A sandbox has a budget of questions.";
    RandomQuestions "random-questions" "Nobody can guess the number of our question.";
    EveryServer "every-server" "Whatever name server is asked, it is ours.";
    DnsStreams "dns-streams" "Connections with questions are few.";
    UpdatesHold "updates-hold" "What is decided is decided by the policy of the moment.";
    ResolvedOnce "resolved-once" "What was resolved is what is dialled.";
    QuestionGrammar "question-grammar" "A question has one reading.";
    AnswersMatch "answers-match" "An answer is for what was asked.";
    DatagramSize "datagram-size" "An answer fits into a datagram or says that it does not.";
    SmallCache "small-cache" "Only addresses are remembered.";
    Places "places" "A sandbox has a bounded number of connections.";
    HeadTime "head-time" "A greeting and a head end in time.";
    BodySize "body-size" "A request's body has a bounded size.";
    BoundedLines "bounded-lines" "What is counted by name takes a bounded place.";
    HeadSize "head-size" "A head has a bounded size.";
    EscapedRecords "escaped-records" "Nobody writes lines of the audit.";
    CountedRecords "counted-records" "What is not written is counted.";
    Confined "confined" "The process gives up what it does not need.";
    OwnCache "own-cache" "Sandboxes share no answers.";
    SandboxLimits "sandbox-limits" "The limits of a policy hold in the middle of a flow.";
    RuleLimits "rule-limits" "The limits of a rule hold in the middle of an exchange.";
    HeadBytes "head-bytes" "Heads are bytes too.";
    Interception "interception" "A name with rules is never spliced.";
    Sweep "sweep" "An update ends what it does not admit.";
    SweptAddresses "swept-addresses" "An update ends exchanges with addresses that it does not admit.";
    WholeBodies "whole-bodies" "A body that was cut off does not look whole.";
    PendingQuestions "pending-questions" "A question on its way is answered by the policy of the moment.";
    OwnPool "own-pool" "Sandboxes and rules share no connection.";
    Rotation "rotation" "A rotated credential is another one at once.";
    RotatedExchanges "rotated-exchanges" "An exchange does not carry what was rotated.";
    KnownMembers "known-members" "A policy has no members that nobody knows.";
    Backdated "backdated" "A certificate holds for a clock that is behind.";
    WholeHello "whole-hello" "A greeting is read whole however it was cut.";
    StrictHello "strict-hello" "A greeting has one reading.";
    NoTickets "no-tickets" "No session outlives its connection.";
    Alpn "alpn" "What is negotiated is spoken.";
    ServerCertificates "server-certificates" "A server must vouch for its name.";
    MintRate "mint-rate" "Certificates are made at a rate.";
    LeafProfile "leaf-profile" "Certificates are what strict clients want.";
    IdleServers "idle-servers" "Nothing idle outlives its policy.";
    ScrubBodies "scrub-bodies" "Bodies are searched for what was injected.";
    ScrubHeads "scrub-heads" "Heads are searched for what was injected.";
    ScrubTrailers "scrub-trailers" "Trailers are searched for what was injected.";
    ScrubTunnels "scrub-tunnels" "Web sockets are searched for what was injected.";
    Reflections "reflections" "A credential that comes back is not sent again.";
    OfferedExtensions "offered-extensions" "A web socket has no extensions that nobody offered.";
    Encodings "encodings" "What cannot be searched is refused.";
    DecodeBounds "decode-bounds" "A few bytes do not become gigabytes.";
    ResponseFraming "response-framing" "A response has one length.";
    ShortSecrets "short-secrets" "What is too short to be found is not looked for.";
    ValueLines "value-lines" "A value is one line.";
    AmbientUse "ambient-use" "A credential with a placeholder goes only where the placeholder is.";
    OneLength "one-length" "A request has one length.";
    CleartextHttp2 "cleartext-http2" "HTTP/2 without TLS is refused.";
    EarlyAnswers "early-answers" "A client that is still sending can read its answer.";
    AgreedUpgrades "agreed-upgrades" "Nothing is a tunnel that the server did not agree to.";
    WebsocketOnly "websocket-only" "Nothing but a web socket is upgraded.";
    Trailers "trailers" "Trailers of a request end here.";
    WholeAnswers "whole-answers" "An answer that was cut off does not look whole.";
    OrderedUpdates "ordered-updates" "Updates are compiled one after the other.";
    Resets "resets" "A client that takes its requests back for ever is ended.";
    RequestPlaces "request-places" "Requests beside each other count as connections.";
    SmallSendBuffers "small-send-buffers" "Little waits for a client that does not read.";
    SystemCalls "system-calls" "The process keeps the system calls that it needs.";
    NoSwap "no-swap" "What is in memory is not written to swap.";
    StampedGenerations "stamped-generations" "A record says under which policy something was decided.";
}

impl Defence {
    /// Whether it is on, which it always is but in a test of the tests.
    #[cfg(not(feature = "defences-off"))]
    pub const fn holds(self) -> bool {
        true
    }

    /// Whether it is on.
    ///
    /// # Panics
    ///
    /// When the variable names what is no defence: a test would be believed to have run without it.
    #[cfg(feature = "defences-off")]
    pub fn holds(self) -> bool {
        static OFF: std::sync::LazyLock<std::collections::HashSet<Defence>> = std::sync::LazyLock::new(|| {
            let names = std::env::var("HUTCH_DEFENCES_OFF").unwrap_or_default();
            let known = |name: &str| Defence::ALL.iter().copied().find(|defence| defence.name() == name);
            names
                .split(',')
                .filter(|name| !name.is_empty())
                .map(|name| known(name).unwrap_or_else(|| panic!("{name} is no defence")))
                .collect()
        });
        !OFF.contains(&self)
    }
}
