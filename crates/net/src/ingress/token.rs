//! Tokens for private ports: `v1.SUBDOMAIN.EXPIRY.EPOCH.SIGNATURE`, signed by the API with Ed25519.
//!
//! Only the verification key is here. A token is for one subdomain, until a second since the epoch, while the sandbox has this
//! epoch, which changes when its tokens are revoked.

use ring::signature::{ED25519, UnparsedPublicKey};

/// The length of a verification key.
pub const KEY_BYTES: usize = 32;
const MAX_BYTES: usize = 512;
/// What the signature covers begins with this, so that nothing else that the key ever signs is a token.
const PURPOSE: &str = "hutch-ingress:";

/// Whether `token` opens `subdomain` now.
pub fn valid(key: &[u8], token: &str, subdomain: &str, epoch: u64, now_s: u64) -> bool {
    check(key, token, subdomain, epoch, now_s).unwrap_or(false)
}

fn check(key: &[u8], token: &str, subdomain: &str, epoch: u64, now_s: u64) -> Option<bool> {
    if token.len() > MAX_BYTES {
        return None;
    }
    let (signed, signature) = token.rsplit_once('.')?;
    let mut fields = signed.split('.');
    let (version, named, expiry, said) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if fields.next().is_some() || version != "v1" || named != subdomain {
        return None;
    }
    if said.parse() != Ok(epoch) || expiry.parse::<u64>().ok()? <= now_s {
        return None;
    }
    let message = format!("{PURPOSE}{signed}");
    let signature = unhex(signature)?;
    Some(
        UnparsedPublicKey::new(&ED25519, key)
            .verify(message.as_bytes(), &signature)
            .is_ok(),
    )
}

/// Bytes from pairs of hexadecimal digits.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    fn pair(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn signed(pair: &Ed25519KeyPair, text: &str) -> String {
        use std::fmt::Write as _;
        let signature = pair.sign(format!("{PURPOSE}{text}").as_bytes());
        let hex = signature.as_ref().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        format!("{text}.{hex}")
    }

    #[test]
    fn a_token_opens_its_subdomain_until_it_expires_or_is_revoked() {
        let pair = pair(1);
        let key = pair.public_key().as_ref();
        let token = signed(&pair, "v1.sb-a.1000.7");
        assert!(valid(key, &token, "sb-a", 7, 999));
        assert!(!valid(key, &token, "sb-a", 7, 1000));
        assert!(!valid(key, &token, "sb-a", 8, 999));
        assert!(!valid(key, &token, "sb-b", 7, 999));
    }

    #[test]
    fn forged_tokens_open_nothing() {
        let pair = pair(1);
        let key = pair.public_key().as_ref();
        let token = signed(&pair, "v1.sb-a.1000.7");
        assert!(!valid(key, &signed(&self::pair(2), "v1.sb-a.1000.7"), "sb-a", 7, 999));
        assert!(!valid(key, &token.replace(".1000.", ".9000."), "sb-a", 7, 999));
        assert!(!valid(key, &signed(&pair, "v2.sb-a.1000.7"), "sb-a", 7, 999));
        assert!(!valid(key, &signed(&pair, "v1.sb-a.1000.7.x"), "sb-a", 7, 999));
        for bad in [
            "",
            ".",
            "v1.sb-a.1000.7",
            "v1.sb-a.1000.7.",
            "v1.sb-a.1000.7.zz",
            "v1.sb-a.-1.7.00",
            &"v".repeat(600),
        ] {
            assert!(!valid(key, bad, "sb-a", 7, 999), "{bad}");
        }
        assert!(!valid(&[], &token, "sb-a", 7, 999));
    }
}
