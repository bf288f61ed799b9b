//! The policy engine as the Python module `hutch_native`: bytes of JSON in, bytes of JSON out.
//!
//! * `lib`: the module itself, its functions and its one exception
//! * `compiling`: a policy → what the control plane stores and shows
//! * `explaining`: a question about one request → what would happen
//! * `request`: JSON from Python, read with errors that say where
//!
//! `hutch.egress.policy` is the typed face of it, and the only place that imports it. The engine runs without the
//! interpreter's lock, and a fault in it is a `RuntimeError`: it never takes the process down with it.

mod compiling;
mod explaining;
mod request;

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::create_exception;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::request::Refusal;

create_exception!(
    hutch_native,
    PolicyError,
    PyValueError,
    "What is wrong with the input. Its arguments are a JSON pointer, a code, and a message that ends a sentence about what the \
     pointer names."
);

/// Compile a policy in any of its forms. Raises `PolicyError`.
///
/// `policy` is JSON; so is `previous`, the stored policy that it replaces and from which redacted values are taken. `role` is
/// "tenant" or "bounds". `settings` is an object: `allow_private`, `own`, `sandbox_pools` (lists of text), and `bounds`, a
/// list of policies that the tenant's is compared with.
///
/// The result is an object: `text` (the request form, secret values included), `read_back`, `hash`, `mode`, `warnings`,
/// `credentials`, `placeholders` (pairs of variable and credential), `intercepted`, `empty`, `outside`.
#[pyfunction]
#[pyo3(signature = (policy, previous, role, settings))]
fn compile_policy<'py>(
    py: Python<'py>,
    policy: &[u8],
    previous: Option<&[u8]>,
    role: &str,
    settings: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    apart(py, || compiling::compile_policy(policy, previous, role, settings))
}

/// What would happen to one request. Raises `PolicyError`.
///
/// `request` is an object: `policies` (bounds first, the tenant's last), `settings` (as for `compile_policy`), `url`, and
/// where they are known `method`, `headers` (an object, or a list of pairs), `address` (what the guest dials),
/// `credentials` (name → whether there is one; unnamed ones are).
///
/// The result is an object: `decision`, `reason`, `message`, `stage`, `dns`, `mode`, `pattern`, `rule`, `injected`,
/// `credentials`, `status`, `address`.
#[pyfunction]
fn explain<'py>(py: Python<'py>, request: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    apart(py, || explaining::explain(request))
}

/// Check the operator's settings alone. Raises `PolicyError`.
#[pyfunction]
fn check_settings(py: Python<'_>, settings: &[u8]) -> PyResult<()> {
    apart(py, || request::Settings::read(settings).map(|_| Vec::new())).map(|_| ())
}

/// The ranges that stay closed under the operator's settings, as a list of text. Raises `PolicyError`.
#[pyfunction]
fn closed_ranges<'py>(py: Python<'py>, settings: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    apart(py, || {
        let settings = request::Settings::read(settings)?;
        let ranges: Vec<String> = settings.hard_deny.closed().iter().map(ToString::to_string).collect();
        Ok(serde_json::json!(ranges).to_string().into_bytes())
    })
}

/// Run `work` without the interpreter's lock, and turn what goes wrong into exceptions.
fn apart(py: Python<'_>, work: impl FnOnce() -> Result<Vec<u8>, Refusal> + Send) -> PyResult<Bound<'_, PyBytes>> {
    let done = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    match done {
        Ok(Ok(answer)) => Ok(PyBytes::new(py, &answer)),
        Ok(Err(refusal)) => Err(PolicyError::new_err((refusal.pointer, refusal.code, refusal.message))),
        Err(_) => Err(PyRuntimeError::new_err("the policy engine failed")),
    }
}

#[pymodule]
fn hutch_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("PolicyError", module.py().get_type::<PolicyError>())?;
    module.add_function(wrap_pyfunction!(compile_policy, module)?)?;
    module.add_function(wrap_pyfunction!(explain, module)?)?;
    module.add_function(wrap_pyfunction!(check_settings, module)?)?;
    module.add_function(wrap_pyfunction!(closed_ranges, module)?)?;
    Ok(())
}
