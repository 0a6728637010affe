//! The account stage: counts a request against every limit that applies, and tells clients how their limits stand
//! (reference: gateway behaviour 7).

use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use http_body::Body as _;
use serde_json::json;

use super::body::Metered;
use super::{Arrival, Asked, Body, Gateway, Observed, respond};
use crate::accounting::{Admission, Facts, Kind, Meter, Refused, Shown, UserLimits};
use crate::clock;
use crate::problem::Problem;
use crate::store::StoreError;

const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const X_RATELIMIT_RETRY_AFTER: HeaderName = HeaderName::from_static("x-ratelimit-retry-after");

/// Whole seconds, no less than the time.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// How a limit stood when a request was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    limit: u64,
    remaining: u64,
    /// The first second in which some of it is free again.
    resets_at: u64,
}

impl From<&Shown> for Told {
    fn from(shown: &Shown) -> Self {
        let Shown { limit, remaining, resets_in } = *shown;
        Self { limit, remaining, resets_at: clock::second_in(resets_in) }
    }
}

impl Told {
    /// Adds the headers that tell it.
    pub(super) fn show(self, headers: &mut HeaderMap) {
        headers.insert(X_RATELIMIT_LIMIT, self.limit.into());
        headers.insert(X_RATELIMIT_REMAINING, self.remaining.into());
        headers.insert(X_RATELIMIT_RESET, self.resets_at.into());
    }
}

/// What a caller is told who has reached a limit.
fn reached(kind: &Kind, limit: &Shown, told: Told) -> Problem {
    let after = seconds(limit.resets_in).max(1);
    let plain = |text| Problem::new(StatusCode::TOO_MANY_REQUESTS, text, text);
    let problem = match kind {
        Kind::Tier(window) | Kind::Quota(window) | Kind::Rule(window) => {
            let message = format!("Rate limit exceeded: quota {} per {window}", limit.limit);
            let body = json!({
                "error": "Rate limit exceeded", "error_code": "RATE_LIMIT_EXCEEDED", "message": message,
                "limit": limit.limit, "remaining": 0, "reset_at": told.resets_at, "retry_after": after,
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

/// What limits a user, or why that is not known.
pub(super) type Limits = Result<Arc<UserLimits>, StoreError>;

/// The most bytes of a body.
#[derive(Debug)]
pub(super) struct BodyLimit {
    pub(super) bytes: u64,
    /// How the user's bytes stand, if less is left of them than the settings say.
    left: Option<Shown>,
}

impl BodyLimit {
    /// What the settings say, or what is left to the user.
    pub(super) fn new(setting: u64, left: Option<Shown>) -> Self {
        let left = left.filter(|left| left.remaining < setting);
        Self { bytes: left.as_ref().map_or(setting, |left| left.remaining), left }
    }
}

impl Gateway {
    /// Counts a request with a body of so many bytes, and waits where it must. Tells how the bytes of the user stand, where
    /// they are limited.
    pub(super) async fn account(
        &self,
        (facts, limits): (&Facts<'_>, Option<Limits>),
        length: u64,
        observed: &mut Observed,
    ) -> Result<Option<Shown>, Problem> {
        match self.accounts.measure(facts, limits, length).await {
            Ok(admitted) => {
                observed.limit = admitted.shown.as_ref().map(Told::from);
                if !admitted.wait.is_zero() {
                    tokio::time::sleep(admitted.wait).await;
                }
                Ok(admitted.bytes)
            }
            Err(Refused::Limit { kind, shown }) => {
                self.metrics.limited(&kind);
                let told = Told::from(&shown);
                // A full queue and bytes say nothing about how many requests are left.
                observed.limit = (!matches!(kind, Kind::Throttle | Kind::Bandwidth)).then_some(told);
                Err(reached(&kind, &shown, told))
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
        let facts = Facts { user, api: None, endpoint: None, address, admission };
        let limits = self.limits(user).await;
        self.account((&facts, limits), 0, observed).await.map(|_| ())
    }

    /// What a client is told whose body is larger than it may be.
    pub(super) fn too_large(&self, limit: &BodyLimit) -> Problem {
        match &limit.left {
            Some(left) => {
                self.metrics.limited(&Kind::Bandwidth);
                reached(&Kind::Bandwidth, left, left.into())
            }
            None => Problem::too_large(limit.bytes),
        }
    }

    /// What limits this user; `None`: there is none.
    pub(super) async fn limits(&self, user: Option<&str>) -> Option<Limits> {
        Some(self.accounts.of_user(user?).await)
    }

    /// Counts the bytes of a call from here on, where its user's are limited; however it ends, they are booked.
    pub(super) fn meter(&self, arrival: Arrival<'_>, asked: &Asked<'_>, limits: Option<&Limits>) -> Option<Arc<Meter>> {
        let is_own = asked.api().is_some_and(|api| api.api.needs_identity);
        let meter = self.accounts.meter(limits?.as_ref().ok()?, is_own)?;
        meter.add(respond::size(&arrival.parts.headers));
        Some(meter)
    }

    /// Counts the bytes of an answer, where its user's are limited. They are booked before the client has all of it, so
    /// that the next call finds them.
    pub(super) async fn metered(&self, response: Response<Body>, observed: &Observed) -> Response<Body> {
        let Some(meter) = observed.meter.clone() else { return response };
        meter.add(respond::size(response.headers()));
        if !response.body().is_end_stream() {
            return response.map(|body| Body::Metered(Box::new(Metered::new(body, meter))));
        }
        if let Some(booking) = meter.book() {
            // It can't fail, and if it could the answer would not be worse for it.
            let _ = booking.await;
        }
        response
    }
}
