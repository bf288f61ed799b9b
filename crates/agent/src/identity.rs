//! What a claim made of this guest: whose it is, and the defaults of all commands.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;

use hutch_wire::ErrorMessage;

use crate::errors::bad_request;
use crate::requests::{Claim, UserName};
use crate::sys_unsafe::Credentials;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

type Environment = BTreeMap<Vec<u8>, Vec<u8>>;

/// The guest's identity. Before the first claim the default user is root.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) token: String,
    cwd: Vec<u8>,
    default: Credentials,
    root: Credentials,
    default_environment: Environment,
    root_environment: Environment,
}

impl Identity {
    /// Nobody's guest.
    pub(crate) fn unclaimed() -> Self {
        let environment = with_user(Environment::new(), b"root", b"/root", true);
        Self {
            token: String::new(),
            cwd: b"/".to_vec(),
            default: Credentials::root(),
            root: Credentials::root(),
            default_environment: environment.clone(),
            root_environment: environment,
        }
    }

    /// What `claim` asks for, checked.
    pub(crate) fn claimed(claim: &Claim) -> Result<Self, ErrorMessage> {
        if claim.token.len() > 256 {
            return Err(bad_request("Invalid request: the token is longer than 256 bytes"));
        }
        if !claim.cwd.0.starts_with(b"/") {
            return Err(bad_request("Invalid request: cwd is not an absolute path"));
        }
        if claim.user.groups.len() > 1024 {
            return Err(bad_request("Invalid request: more than 1024 groups"));
        }
        // The highest id means "leave as it is" to the kernel: the program would stay root.
        if [claim.user.uid, claim.user.gid].contains(&u32::MAX) || claim.user.groups.contains(&u32::MAX) {
            return Err(bad_request("Invalid request: a user or group id is out of range"));
        }
        if claim.user.name.contains('\0') {
            return Err(bad_request("Invalid request: a NUL byte in the user's name"));
        }
        let user = &claim.user;
        let base = checked(&claim.env)?;
        let name = user.name.as_bytes();
        let default_environment = with_user(base.clone(), name, &user.home.0, false);
        let mut root_environment = with_user(base, b"root", b"/root", true);
        root_environment.insert(b"SUDO_USER".to_vec(), name.to_vec());
        root_environment.insert(b"SUDO_UID".to_vec(), user.uid.to_string().into_bytes());
        root_environment.insert(b"SUDO_GID".to_vec(), user.gid.to_string().into_bytes());
        Ok(Self {
            token: claim.token.clone(),
            cwd: claim.cwd.0.clone(),
            default: Credentials {
                uid: user.uid,
                gid: user.gid,
                groups: user.groups.clone(),
            },
            root: Credentials::root(),
            default_environment,
            root_environment,
        })
    }

    pub(crate) fn credentials(&self, user: UserName) -> &Credentials {
        match user {
            UserName::Default => &self.default,
            UserName::Root => &self.root,
        }
    }

    /// `path` from `cwd` from the claim's directory.
    pub(crate) fn resolve(&self, cwd: Option<&[u8]>, path: &[u8]) -> Vec<u8> {
        join(&join(&self.cwd, cwd.unwrap_or_default()), path)
    }

    /// The variables of a command, each `NAME=value`, and the value of `PATH`.
    pub(crate) fn environment(
        &self,
        user: UserName,
        own: &BTreeMap<String, String>,
    ) -> Result<(Vec<CString>, Vec<u8>), ErrorMessage> {
        let base = match user {
            UserName::Default => &self.default_environment,
            UserName::Root => &self.root_environment,
        };
        let mut merged = base.clone();
        merged.extend(checked(own)?);
        let path = merged
            .get(b"PATH".as_slice())
            .cloned()
            .unwrap_or_else(|| DEFAULT_PATH.into());
        let variables = merged
            .into_iter()
            .filter_map(|(name, value)| CString::new([name.as_slice(), b"=", &value].concat()).ok())
            .collect();
        Ok((variables, path))
    }
}

fn checked(variables: &BTreeMap<String, String>) -> Result<Environment, ErrorMessage> {
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(bad_request(format!(
                "Invalid request: the environment variable {name:?} has no valid form"
            )));
        }
    }
    Ok(variables
        .iter()
        .map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes()))
        .collect())
}

fn with_user(mut environment: Environment, name: &[u8], home: &[u8], always: bool) -> Environment {
    let shell = if Path::new("/bin/bash").exists() {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    for (variable, value) in [
        ("HOME", home),
        ("USER", name),
        ("LOGNAME", name),
        ("SHELL", shell.as_bytes()),
    ] {
        if always || !environment.contains_key(variable.as_bytes()) {
            environment.insert(variable.as_bytes().to_vec(), value.to_vec());
        }
    }
    environment
}

/// `path` seen from `base`.
pub(crate) fn join(base: &[u8], path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") || base.is_empty() {
        return path.to_vec();
    }
    if path.is_empty() {
        return base.to_vec();
    }
    let separator: &[u8] = if base.ends_with(b"/") { b"" } else { b"/" };
    [base, separator, path].concat()
}
