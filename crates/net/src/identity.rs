//! Identity tokens: what tells the other end of a `forwardURL` whose request it gets.
//!
//! A signed JWT (RS256) for that URL alone. It lives for a minute and is used again for half of one: a signature costs
//! about a millisecond.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hutch_policy::base64;
use ring::rand::{SecureRandom, SystemRandom};
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use crate::locks::lock;
use crate::sandbox::Identity;
use crate::scrub::{Needles, SecretForms};

const LIFE_S: u64 = 60;
const REUSE_S: u64 = 30;
const MAX_KEPT: usize = 1024;

/// Signs tokens.
pub struct Signer {
    issuer: String,
    key_id: String,
    key: KeyPair,
    random: SystemRandom,
    kept: Mutex<HashMap<(String, String), (u64, Token)>>,
}

/// A token, and what finds it in responses. Making the latter takes longer than the signature.
#[derive(Clone)]
pub struct Token {
    /// The token.
    pub text: String,
    /// Its forms.
    pub needles: Arc<Needles>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.key_id)
    }
}

impl Signer {
    /// A signer with an RSA key (PKCS #8 in PEM). The text says what is wrong with it.
    pub fn new(issuer: &str, key_id: &str, pem: &str) -> Result<Self, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("the signing key is not PKCS #8 in PEM: {error}"))?;
        let key = KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map_err(|error| format!("the signing key is no usable RSA key: {error}"))?;
        Ok(Self {
            issuer: issuer.to_owned(),
            key_id: key_id.to_owned(),
            key,
            random: SystemRandom::new(),
            kept: Mutex::default(),
        })
    }

    /// A token for `audience` about this sandbox; `None` if none can be made.
    pub fn token(&self, audience: &str, identity: &Identity, now_s: u64) -> Option<Token> {
        let key = (audience.to_owned(), identity.lifecycle.clone());
        if let Some((made, token)) = lock(&self.kept).get(&key)
            // Also where the clock was set back: a token from the future is no use to anybody.
            && now_s.abs_diff(*made) < REUSE_S
        {
            return Some(token.clone());
        }
        let mut id = [0; 16];
        self.random.fill(&mut id).ok()?;
        let head = json!({"alg": "RS256", "kid": self.key_id, "typ": "JWT"});
        let claims = json!({
            "iss": self.issuer,
            "aud": audience,
            "sub": format!("sandbox:{}", identity.sandbox_id),
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + LIFE_S,
            "jti": base64::encode_url(&id),
            "team_id": identity.team_id,
            "project_id": identity.project_id,
            "sandbox_id": identity.sandbox_id,
            "sandbox_name": identity.sandbox_name,
        });
        let signed = format!(
            "{}.{}",
            base64::encode_url(head.to_string().as_bytes()),
            base64::encode_url(claims.to_string().as_bytes())
        );
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &self.random, signed.as_bytes(), &mut signature)
            .ok()?;
        let text = format!("{signed}.{}", base64::encode_url(&signature));
        let forms = SecretForms {
            id: 0,
            value: &text,
            rendered: None,
            basic: false,
        };
        let token = Token {
            needles: Arc::new(Needles::new(&[forms])),
            text,
        };
        let mut kept = lock(&self.kept);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(key, (now_s, token.clone()));
        Some(token)
    }
}
