//! The call stage: which server, how often, and what the client is told when there is no answer (reference: gateway
//! behaviour 9 and 10).
//!
//! A call that may be repeated, is validated or changed is read whole before it is sent; all others stream. A server
//! that keeps failing is left alone by its breaker, and the next one in turn is called. Repeats are bounded by the API's
//! budget.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::account::BodyLimit;
use super::validate::{self, Reading};
use super::{Body, Gateway, Observed, transform};
use crate::accounting::{ChargeError, Charged, Received};
use crate::listen::ClientBody;
use crate::problem::Problem;
use crate::protocols::rest;
use crate::snapshot::{CompiledApi, Match, Server, Servers};
use crate::upstream::{BreakerRules, CallTimeouts, Leave, Progress, RequestBody, ResponseBody, UpstreamError};

/// Answers after which another attempt is made.
const FAILED: [StatusCode; 4] = [
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];

/// Names a routing (reference: gateway behaviour 9).
const CLIENT_KEY: HeaderName = HeaderName::from_static("client-key");

/// Everything about a call but its body.
pub(super) struct Call<'a> {
    pub(super) parts: &'a Parts,
    pub(super) api: &'a CompiledApi,
    pub(super) endpoint: Match<'a>,
    /// Decoded segments behind name and version.
    pub(super) path: &'a [std::borrow::Cow<'a, str>],
    pub(super) told: rest::Caller<'a>,
    /// Whom the call is charged to.
    pub(super) user: Option<&'a Arc<str>>,
    /// When the request came in.
    pub(super) arrived: Instant,
    pub(super) limit: BodyLimit,
}

/// Where a call goes, and who pays for it.
pub(super) struct Decided<'a> {
    pub(super) server: &'a Server,
    /// To make the next attempt.
    leave: Option<Leave>,
    /// Is it one that the API trusts with its credentials?
    pub(super) is_trusted: bool,
    pub(super) charged: Charged,
}

/// A body on its way.
enum Upload {
    Nothing,
    /// Streams from the client, and so can be sent once.
    Once(Option<RequestBody>, Arc<Progress>),
    Again(Bytes),
}

impl Upload {
    fn body(&mut self) -> RequestBody {
        match self {
            Self::Nothing => RequestBody::Empty,
            Self::Once(body, _) => body.take().unwrap_or(RequestBody::Empty),
            Self::Again(bytes) => RequestBody::Whole(Some(bytes.clone())),
        }
    }

    /// All of it, where it was read.
    fn whole(&mut self) -> Option<&mut Bytes> {
        match self {
            Self::Again(bytes) => Some(bytes),
            Self::Nothing | Self::Once(..) => None,
        }
    }

    /// May it be sent again where it is unknown whether it arrived?
    fn can_go_again(&self, method: &Method) -> bool {
        method.is_idempotent() && !matches!(self, Self::Once(..))
    }

    fn progress(&self) -> Option<&Arc<Progress>> {
        match self {
            Self::Once(_, progress) => Some(progress),
            Self::Nothing | Self::Again(_) => None,
        }
    }
}

impl Gateway {
    /// Calls the upstream and makes the client's answer of its own.
    pub(super) async fn call(
        &self,
        call: Call<'_>,
        body: ClientBody,
        observed: &mut Observed,
    ) -> Result<Response<Body>, Problem> {
        let api = call.api;
        let timeouts = api.timeouts(&self.settings.upstream);
        let body = Received::new(body, observed.meter.clone());
        observed.read = body.read().cloned();
        let carries_body = rest::takes_body(&call.parts.method) && !http_body::Body::is_end_stream(&body);
        let reading = validate::reading(&call, carries_body)?;
        let mut upload = if !carries_body {
            Upload::Nothing
        } else if api.api.retries > 0 || reading != Reading::Unread {
            Upload::Again(self.whole(body, &call.limit, timeouts.write).await?)
        } else {
            let (body, progress) = RequestBody::stream(body, call.limit.bytes);
            Upload::Once(Some(body), progress)
        };
        let routed = self.routed(call.parts).await;
        let mut decided = self.decided(&call, reading, upload.whole(), routed.as_deref()).await?;
        let answered = self.attempts(&call, &mut decided, &timeouts, &mut upload, observed).await;
        decided.charged.settle().await;
        let (answer, sent) = answered?;
        transform::respond(&call, answer, sent).await
    }

    /// All that may still refuse a call before it is sent, the charge last.
    pub(super) async fn decided<'a>(
        &self,
        call: &Call<'a>,
        reading: Reading,
        mut whole: Option<&mut Bytes>,
        routed: Option<&'a Servers>,
    ) -> Result<Decided<'a>, Problem> {
        validate::validate(call, reading, whole.as_deref())?;
        if let Some(body) = &mut whole {
            transform::request_body(call, reading, body);
        }
        let (server, leave) = choose(call, routed, self.breaker_rules(call.api))?;
        // Whoever sets a routing need not be who may see an API's secrets.
        let is_own = || [own_servers(call), &call.api.servers].iter().any(|own| own.have(server));
        let is_trusted = routed.is_none() || self.settings.upstream.routed_credentials || is_own();
        let charged = self.charge(call).await?;
        Ok(Decided { server, leave, is_trusted, charged })
    }

    /// Sends the call until there is an answer to give, or nothing more to try; the answer, and when it was asked for.
    async fn attempts(
        &self,
        call: &Call<'_>,
        decided: &mut Decided<'_>,
        timeouts: &CallTimeouts,
        upload: &mut Upload,
        observed: &mut Observed,
    ) -> Result<(Response<ResponseBody>, Instant), Problem> {
        let Decided { server, leave, is_trusted, charged } = decided;
        let (api, rules) = (call.api, self.breaker_rules(call.api));
        if api.api.retries > 0 {
            api.retries.earn();
        }
        let (mut attempt, mut may_reuse) = (0, true);
        loop {
            let told = rest::Caller { key: charged.key.as_ref(), is_trusted: *is_trusted, ..call.told };
            let body = upload.body();
            let request = rest::upstream_request(call.parts, api, call.endpoint, call.path, server, told, body)?;
            let sent = Instant::now();
            let answer = server.pool.send(request, timeouts, upload.progress(), may_reuse, &mut charged.is_sent).await;
            *observed.upstream.get_or_insert_default() += sent.elapsed();
            if matches!(answer, Err(UpstreamError::Stale(_))) && upload.can_go_again(&call.parts.method) {
                // Says nothing about the server, and is no attempt (RFC 9110, 9.2.2).
                may_reuse = false;
                continue;
            }
            let has_failed = has_failed(&answer);
            judge(leave.take(), &answer, has_failed, rules);
            if matches!(answer, Err(UpstreamError::Timeout(_))) {
                self.metrics.upstream_timeouts.inc();
                observed.timeouts += 1;
            }
            attempt += 1;
            let may_repeat = has_failed && may_be_repeated(&answer) && attempt <= api.api.retries;
            let may_repeat = may_repeat && api.retries.spend();
            if may_repeat {
                *leave = rules.and_then(|_| server.breaker.admit());
            }
            if may_repeat && (leave.is_some() || rules.is_none()) {
                tracing::warn!(api = &*api.label, attempt, "an attempt failed; trying again");
                self.metrics.retries.inc();
                observed.retries += 1;
                // The upstream may serve one connection at a time.
                drop(answer);
                tokio::time::sleep(self.pause(attempt)).await;
                continue;
            }
            let progress = upload.progress();
            return match answer {
                Ok(answer) => Ok((answer, sent)),
                Err(_) if progress.is_some_and(|progress| progress.is_too_large()) => Err(self.too_large(&call.limit)),
                Err(_) if progress.is_some_and(|progress| progress.is_broken()) => Err(Problem::broken_body()),
                Err(UpstreamError::ClientStalled) => Err(Problem::stalled()),
                Err(error) => Err(upstream_failed(api, &error)),
            };
        }
    }

    /// The servers of the call's client key, if it has one that is known.
    pub(super) async fn routed(&self, parts: &Parts) -> Option<Arc<Servers>> {
        let key = parts.headers.get(CLIENT_KEY)?.to_str().ok()?;
        self.routings.servers(key).await
    }

    /// Takes the credit that a call costs, if it costs one.
    async fn charge(&self, call: &Call<'_>) -> Result<Charged, Problem> {
        let Some(credits) = &call.api.api.credits else { return Ok(Charged::default()) };
        let charged = match &credits.group {
            Some(group) => self.accounts.charge(call.user, group).await,
            None if call.user.is_none() => Ok(Charged::default()),
            None => Err(ChargeError::Empty),
        };
        match &charged {
            Ok(_) if call.user.is_some() => drop(self.metrics.credits_charged.inc()),
            Err(error) => {
                self.metrics.credits_refused.inc();
                tracing::warn!(api = &*call.api.label, %error, "a call can't be charged");
            }
            Ok(_) => {}
        }
        charged.map_err(|error| match error {
            ChargeError::Empty => Problem::new(StatusCode::UNAUTHORIZED, "GTW008", "User does not have any credits"),
            ChargeError::Unusable(..) => {
                let message = "The upstream's key can't be used; the credit definition must be set again";
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "CRD500", message)
            }
            ChargeError::Away(_) => {
                let message = "Credits can't be charged at the moment; try again";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "CRD503", message).header(header::RETRY_AFTER, 1)
            }
        })
    }

    /// A whole body, from a client that doesn't stop sending.
    async fn whole(&self, body: Received, limit: &BodyLimit, stall: Duration) -> Result<Bytes, Problem> {
        let mut body = Limited::new(body, usize::try_from(limit.bytes).unwrap_or(usize::MAX));
        let mut read = bytes::BytesMut::new();
        loop {
            match tokio::time::timeout(stall, body.frame()).await {
                Err(_) => return Err(Problem::stalled()),
                Ok(None) => return Ok(read.freeze()),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        read.extend_from_slice(&data);
                    }
                }
                Ok(Some(Err(error))) if error.is::<LengthLimitError>() => return Err(self.too_large(limit)),
                Ok(Some(Err(_))) => return Err(Problem::broken_body()),
            }
        }
    }

    /// Full jitter, growing twofold.
    fn pause(&self, attempt: u32) -> Duration {
        let settings = self.settings.live();
        let upstream = &settings.upstream;
        let grown = upstream.retry_base_delay.saturating_mul(2_u32.saturating_pow(attempt));
        grown.min(upstream.retry_max_delay).mul_f64(fastrand::f64())
    }

    /// `None`: its upstreams are always called.
    fn breaker_rules(&self, api: &CompiledApi) -> Option<BreakerRules> {
        let settings = self.settings.live();
        let (own, general) = (&api.api.breaker, &settings.upstream);
        own.enabled.unwrap_or(general.breaker).then(|| BreakerRules {
            threshold: own.threshold.unwrap_or(general.breaker_threshold.get()),
            open: own.open.unwrap_or(general.breaker_timeout),
        })
    }
}

/// The cause goes to the log; the client learns the class only (reference: gateway behaviour 10.4).
pub(super) fn upstream_failed(api: &CompiledApi, error: &UpstreamError) -> Problem {
    tracing::error!(api = &*api.label, %error, "upstream call failed");
    if matches!(error, UpstreamError::Timeout(_)) {
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "GTW010", "Gateway timeout")
    } else {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "GTW006", "Internal server error")
    }
}

/// Tells the breaker how an attempt ended, unless that was the client's doing.
fn judge(
    leave: Option<Leave>,
    answer: &Result<Response<ResponseBody>, UpstreamError>,
    has_failed: bool,
    rules: Option<BreakerRules>,
) {
    match (leave, rules) {
        (Some(leave), Some(rules)) if has_failed => leave.failed(rules),
        (Some(leave), _) if answer.is_ok() => leave.succeeded(),
        _ => {}
    }
}

/// Does the attempt count against the upstream?
fn has_failed(answer: &Result<Response<ResponseBody>, UpstreamError>) -> bool {
    match answer {
        Ok(answer) => FAILED.contains(&answer.status()),
        Err(UpstreamError::Timeout(_) | UpstreamError::Connect(_)) => true,
        // What the client broke off came out as a broken connection too.
        Err(UpstreamError::Connection(error) | UpstreamError::Stale(error)) => !error.is_user(),
        Err(UpstreamError::Forbidden(_) | UpstreamError::Target(_) | UpstreamError::ClientStalled) => false,
    }
}

/// A connection that is closed without an answer is not tried again (reference: gateway behaviour 10.3).
fn may_be_repeated(answer: &Result<Response<ResponseBody>, UpstreamError>) -> bool {
    !matches!(answer, Err(UpstreamError::Connection(error) | UpstreamError::Stale(error)) if error.is_incomplete_message())
}

/// Those of the endpoint, else those of the API.
fn own_servers<'a>(call: &Call<'a>) -> &'a Servers {
    call.endpoint.servers().unwrap_or(&call.api.servers)
}

/// The server whose turn it is, of those that are called at the moment.
fn choose<'a>(
    call: &Call<'a>,
    routed: Option<&'a Servers>,
    rules: Option<BreakerRules>,
) -> Result<(&'a Server, Option<Leave>), Problem> {
    let servers = routed.unwrap_or_else(|| own_servers(call));
    let admit = |server: &'a Server| match rules {
        Some(_) => server.breaker.admit().map(Some),
        None => Some(None),
    };
    if let Some(chosen) = servers.choose(admit) {
        return Ok(chosen);
    }
    let Some(rules) = rules.filter(|_| !servers.is_empty()) else {
        return Err(Problem::new(StatusCode::NOT_FOUND, "GTW001", "No upstream servers configured"));
    };
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "GTW999", "Upstream circuit open")
        .header(header::RETRY_AFTER, rules.open.as_secs().max(1)))
}
