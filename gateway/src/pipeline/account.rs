//! The account stage: counts a request against every limit that applies, and tells clients how their limits stand
//! (reference: gateway behaviour 7).

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use http_body::Body as _;
use serde_json::json;

use super::body::Metered;
use super::{Arrival, Body, Gateway, Observed, length, respond};
use crate::accounting::{Admission, Facts, Kind, Refused, Shown};
use crate::problem::Problem;

const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const X_RATELIMIT_RETRY_AFTER: HeaderName = HeaderName::from_static("x-ratelimit-retry-after");

/// Whole seconds, no less than the time.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Adds the headers that tell how a limit stands.
pub(super) fn show(limit: &Shown, headers: &mut HeaderMap) {
    headers.insert(X_RATELIMIT_LIMIT, limit.limit.into());
    headers.insert(X_RATELIMIT_REMAINING, limit.remaining.into());
    headers.insert(X_RATELIMIT_RESET, (crate::store::now() + seconds(limit.resets_in)).into());
}

/// What a caller is told who has reached a limit.
fn reached(kind: &Kind, limit: &Shown) -> Problem {
    let after = seconds(limit.resets_in).max(1);
    let plain = |text| Problem::new(StatusCode::TOO_MANY_REQUESTS, text, text);
    let problem = match kind {
        Kind::Tier(window) | Kind::Quota(window) | Kind::Rule(window) => {
            let message = format!("Rate limit exceeded: quota {} per {window}", limit.limit);
            let body = json!({
                "error": "Rate limit exceeded", "error_code": "RATE_LIMIT_EXCEEDED", "message": message,
                "limit": limit.limit, "remaining": 0, "reset_at": crate::store::now() + after, "retry_after": after,
            });
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "RATE_LIMIT_EXCEEDED", message)
                .body(body)
                .header(X_RATELIMIT_RETRY_AFTER, after)
        }
        Kind::Rate => plain("Rate limit exceeded"),
        Kind::Throttle => plain("Throttle queue limit exceeded"),
        Kind::Bandwidth => plain("Bandwidth limit exceeded"),
    };
    problem.header(RETRY_AFTER, after)
}

impl Gateway {
    /// Counts a request with a body of so many bytes, and waits where it must.
    pub(super) async fn account(&self, facts: &Facts<'_>, length: u64, observed: &mut Observed) -> Result<(), Problem> {
        match self.accounts.measure(facts, length).await {
            Ok(admitted) => {
                observed.limit = admitted.shown;
                if !admitted.wait.is_zero() {
                    tokio::time::sleep(admitted.wait).await;
                }
                Ok(())
            }
            Err(Refused::Limit { kind, shown }) => {
                self.metrics.limited(&kind);
                let problem = reached(&kind, &shown);
                // A full queue and bytes say nothing about how many requests are left.
                observed.limit = (!matches!(kind, Kind::Throttle | Kind::Bandwidth)).then_some(shown);
                Err(problem)
            }
            Err(Refused::Away(error)) => {
                tracing::warn!(%error, "limits can't be checked");
                let message = "Limits can't be checked at the moment; try again";
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "LIM503", message).header(RETRY_AFTER, 1))
            }
        }
    }

    /// Counts a request under `/api` that calls no API: only its user's tier does.
    pub(super) async fn account_for_no_call(
        &self,
        arrival: Arrival<'_>,
        observed: &mut Observed,
    ) -> Result<(), Problem> {
        let Some(Ok(principal)) = self.caller(&arrival.parts.headers).await else { return Ok(()) };
        let user = Some(&*principal.username);
        let (address, admission) = (arrival.client.effective, Admission::NoCall);
        self.account(&Facts { user, api: None, endpoint: None, address, admission }, 0, observed).await
    }

    /// Books the bytes of an answered call on its user's counters, where there are any: what is known of them at once, so
    /// that the next call finds it, and a body of unknown length when it ends.
    pub(super) async fn book(&self, parts: &Parts, response: Response<Body>, observed: &Observed) -> Response<Body> {
        let Some(user) = observed.username.as_deref().filter(|_| observed.is_data_plane) else { return response };
        let is_own = observed.api.as_ref().is_some_and(|api| api.api.needs_identity);
        let counters = self.accounts.byte_counters(user, is_own).await;
        if counters.is_empty() {
            return response;
        }
        let body = response.body().size_hint().exact();
        let known = respond::size(&parts.headers) + length(parts) + respond::size(response.headers());
        self.accounts.store().book(&counters, known + body.unwrap_or_default()).await;
        if body.is_some() {
            return response;
        }
        let store = self.accounts.store().clone();
        response.map(|body| Body::Metered(Box::new(Metered::new(body, store, counters))))
    }
}
