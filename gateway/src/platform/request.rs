//! What handlers take from a request.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts},
};
use bytes::Bytes;
use doorman_crds::{api::ApiKey, role::Permission};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::timeout;
use utoipa::IntoParams;

use super::{Platform, answer::Refusal, audit::Trail, cookies::Cookies, wire::Int};
use crate::{
    client::{ClientAddress, Scheme},
    identity::{CSRF_COOKIE, Denied, SignedIn, cookie},
    problem::Problem,
    store::Listing,
};

const X_CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
/// Routes whose callers have no CSRF token yet, or want another.
const SESSIONS: &str = "/platform/authorization";

/// Longest time for the whole body of a platform call.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Most bytes of a body sent to this path.
pub(super) fn body_limit(platform: &Platform, path: &str) -> u64 {
    /// However small the limit is, the settings can still be changed.
    const SECURITY_SETTINGS: u64 = 1_048_576;
    let settings = platform.settings.live();
    let limits = &settings.limits;
    let limit = limits.of_path(path, limits.body);
    if path == super::security::SETTINGS { limit.max(SECURITY_SETTINGS) } else { limit }
}

/// A whole body, whatever its type, of no more than [`body_limit`].
pub(super) struct Whole(pub(super) Bytes);

impl FromRequest<Platform> for Whole {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, platform: &Platform) -> Result<Self, Problem> {
        let limit = body_limit(platform, request.uri().path());
        let trail = request.extensions().get::<Trail>().cloned().unwrap_or_default();
        let whole = Self::read(request.into_body(), limit).await?;
        trail.body(&whole.0);
        Ok(whole)
    }
}

impl Whole {
    async fn read(body: Body, limit: u64) -> Result<Self, Problem> {
        let limited = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX));
        let whole = timeout(BODY_TIME, limited.collect()).await.map_err(|_| Problem::stalled())?;
        match whole {
            Ok(collected) => Ok(Self(collected.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(Problem::too_large(limit)),
            Err(_) => Err(Problem::broken_body()),
        }
    }
}

/// The signed-in caller. Handlers that say the reason in their own words take a `Result` of it.
pub(super) struct Caller(pub(super) SignedIn);

impl FromRequestParts<Platform> for Caller {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, Denied> {
        let signed_in = platform.identity.sign_in(&parts.headers).await?;
        check_csrf(parts, platform, &signed_in).await?;
        trail(parts).actor(&signed_in.principal.username);
        Ok(Self(signed_in))
    }
}

/// The double submit: over https, the header must repeat the cookie; a client without cookies repeats what it was told
/// at its latest sign-in.
async fn check_csrf(parts: &Parts, platform: &Platform, signed_in: &SignedIn) -> Result<(), Denied> {
    let path = parts.uri.path();
    // What administrators do about the sessions of others is like everything else they do.
    let is_of_sessions = path
        .strip_prefix(SESSIONS)
        .is_some_and(|rest| rest.is_empty() || (rest.starts_with('/') && !rest.starts_with("/admin/")));
    let is_https = scheme(parts).is_effectively_https(&parts.headers);
    // Nor do the management routes below `/api` ask for one, nor those that only watch (operations guide, runbook 3).
    let asks = path.starts_with("/platform/") && !path.starts_with("/platform/monitor/");
    if !platform.settings.server.enforces_https() || !is_https || is_of_sessions || !asks {
        return Ok(());
    }
    let sent = parts.headers.get(X_CSRF_TOKEN).and_then(|value| value.to_str().ok()).filter(|sent| !sent.is_empty());
    let sent = sent.ok_or(Denied::Csrf)?;
    let matches = match cookie(&parts.headers, CSRF_COOKIE) {
        Some(cookie) => cookie == sent,
        None => platform.identity.store().csrf(&signed_in.principal.username).await?.is_some_and(|told| told == sent),
    };
    if matches { Ok(()) } else { Err(Denied::Csrf) }
}

/// Where what is learned of a call is noted for the audit trail.
fn trail(parts: &Parts) -> Trail {
    parts.extensions.get::<Trail>().cloned().unwrap_or_default()
}

fn scheme(parts: &Parts) -> Scheme {
    parts.extensions.get().copied().unwrap_or(Scheme::Http)
}

impl Caller {
    /// Refuses the caller unless the role gives this permission now.
    pub(super) async fn must(
        &self,
        platform: &Platform,
        permission: Permission,
        (code, message): (&'static str, &'static str),
    ) -> Result<(), Refusal> {
        if self.may(platform, permission).await? {
            return Ok(());
        }
        Err(Problem::new(StatusCode::FORBIDDEN, code, message).into())
    }

    /// The same where a refusal has neither code nor envelope.
    pub(super) async fn must_plainly(
        &self,
        platform: &Platform,
        permission: Permission,
        message: &'static str,
    ) -> Result<(), Refusal> {
        if self.may(platform, permission).await? {
            return Ok(());
        }
        Err(Refusal::Detail(StatusCode::FORBIDDEN, message.into()))
    }

    /// Does the caller's role give this permission now?
    pub(super) async fn may(&self, platform: &Platform, permission: Permission) -> Result<bool, Refusal> {
        Ok(platform.identity.may(&self.0.principal, permission).await?)
    }

    /// Is the caller's role one of an administrator?
    pub(super) async fn is_admin(&self, platform: &Platform) -> Result<bool, Refusal> {
        Ok(platform.is_admin_role(&self.0.principal.role).await?)
    }

    /// Is this the caller's own name?
    pub(super) fn is(&self, username: &str) -> bool {
        *self.0.principal.username == *username
    }
}

/// A body or query of the wrong form.
pub(super) fn invalid() -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "VAL001", "Validation Error")
}

/// The same for a member whose value can't be applied, told which and why.
pub(super) fn invalid_as(why: String) -> Problem {
    // A name in it may be of any length.
    let message: String = format!("Validation Error: {why}").chars().take(255).collect();
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "VAL001", message)
}

/// The same, with what is wrong in the log.
fn invalid_because(error: &dyn std::fmt::Display) -> Problem {
    tracing::debug!(%error, "a body or query has the wrong form");
    invalid()
}

/// A JSON object of this form.
pub(super) fn from_json<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    from_json_that_opens(b'{', headers, body)
}

fn from_json_that_opens<T: DeserializeOwned>(opening: u8, headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    let is_json = |kind: &HeaderValue| {
        let essence = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("application/json")
            || essence.to_ascii_lowercase().strip_prefix("application/").is_some_and(|kind| kind.ends_with("+json"))
    };
    // A list of values would be taken for an object's members in order.
    if !headers.get(header::CONTENT_TYPE).is_none_or(is_json) || body.trim_ascii_start().first() != Some(&opening) {
        return Err(invalid());
    }
    let mut source = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut source).map_err(|error| invalid_because(&error))?;
    source.end().map_err(|error| invalid_because(&error))?;
    Ok(value)
}

/// A JSON body and who sent it. The body is looked at before the caller is (reference: platform API 1.2).
pub(super) struct Sent<T> {
    pub(super) caller: Result<Caller, Denied>,
    pub(super) body: T,
}

impl<T> Sent<T> {
    async fn read(
        request: Request<Body>,
        platform: &Platform,
        read: impl FnOnce(&HeaderMap, &Bytes) -> Result<T, Problem> + Send,
    ) -> Result<Self, Problem> {
        let (mut parts, body) = request.into_parts();
        let Whole(bytes) = Whole::read(body, body_limit(platform, parts.uri.path())).await?;
        trail(&parts).body(&bytes);
        let body = read(&parts.headers, &bytes)?;
        Ok(Self { caller: Caller::from_request_parts(&mut parts, platform).await, body })
    }
}

impl<T: DeserializeOwned + Send> FromRequest<Platform> for Sent<T> {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, platform: &Platform) -> Result<Self, Problem> {
        Self::read(request, platform, |headers, bytes| from_json(headers, bytes)).await
    }
}

/// The same for a JSON list.
pub(super) struct SentList<T>(pub(super) Sent<Vec<T>>);

impl<T: DeserializeOwned + Send> FromRequest<Platform> for SentList<T> {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, platform: &Platform) -> Result<Self, Problem> {
        let read = |headers: &HeaderMap, bytes: &Bytes| from_json_that_opens(b'[', headers, bytes);
        Sent::read(request, platform, read).await.map(Self)
    }
}

/// The same where no body is as good as one without members.
pub(super) struct MaybeSent<T>(pub(super) Sent<T>);

impl<T: DeserializeOwned + Default + Send> FromRequest<Platform> for MaybeSent<T> {
    type Rejection = Problem;

    async fn from_request(request: Request<Body>, platform: &Platform) -> Result<Self, Problem> {
        let read = |headers: &HeaderMap, bytes: &Bytes| match bytes.trim_ascii() {
            b"" | b"null" => Ok(T::default()),
            _ => from_json(headers, bytes),
        };
        Sent::read(request, platform, read).await.map(Self)
    }
}

/// A query of this form.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Platform> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Platform) -> Result<Self, Problem> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|error| invalid_because(&error))
    }
}

/// Parameters of the path, percent-decoded.
pub(super) struct At<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Platform> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, Problem> {
        let path = axum::extract::Path::from_request_parts(parts, platform).await;
        path.map(|path| Self(path.0)).map_err(|error| invalid_because(&error))
    }
}

/// Which API.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ApiPath {
    /// The API's name.
    api_name: String,
    /// Its version.
    api_version: String,
}

impl From<ApiPath> for ApiKey {
    fn from(ApiPath { api_name, api_version }: ApiPath) -> Self {
        Self { name: api_name, version: api_version }
    }
}

/// Which page of a list is asked for (reference: platform API 1.8).
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// The page, from 1.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 1_000_000_000_000_000_000_i64, default = 1)]
    page: Option<Int<{ i64::MIN }>>,
    /// Items of a page; `MAX_PAGE_SIZE` at the most.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 1_000_000_000_000_000_000_i64, default = 10)]
    page_size: Option<Int<{ i64::MIN }>>,
}

/// A page of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    number: u64,
    size: u32,
}

/// Items of a page unless the client says otherwise.
pub(super) const PAGE_SIZE: u32 = 10;

impl PageQuery {
    fn is_asked(&self) -> bool {
        self.page.is_some() || self.page_size.is_some()
    }

    /// The page, or why there is none.
    pub(super) fn page(&self, platform: &Platform, usual_size: u32) -> Result<Page, Problem> {
        let refused = |message| Problem::new(StatusCode::BAD_REQUEST, "PAG001", message);
        let most = platform.settings.limits.page_size.get();
        let size = self.page_size.as_ref().map_or(i64::from(usual_size.min(most)), |size| size.0);
        let size = u32::try_from(size).ok().filter(|size| (1..=most).contains(size));
        let size = size.ok_or_else(|| refused("Page size exceeds maximum limit"))?;
        let number = self.page.as_ref().map_or(1, |page| page.0);
        let number = u64::try_from(number).ok().filter(|number| *number >= 1);
        Ok(Page { number: number.ok_or_else(|| refused("Invalid page or page size"))?, size })
    }
}

impl Page {
    /// What to ask the store for.
    pub(super) fn listing(self) -> Listing {
        // Far beyond every list, and still a number that databases take.
        let skip = (self.number - 1).saturating_mul(self.size.into()).min(i64::MAX as u64);
        Listing { skip, limit: Some(self.size), ..Listing::default() }
    }

    /// What of a whole list is on the page.
    pub(super) fn cut<T>(self, all: impl IntoIterator<Item = T>) -> Vec<T> {
        let Listing { skip, .. } = self.listing();
        all.into_iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).take(self.size as usize).collect()
    }

    /// The page as clients read it.
    pub(super) fn of(self, name: &str, items: Vec<Value>, total: u64) -> Value {
        let has_next = self.number.saturating_mul(self.size.into()) < total;
        let mut page = json!({ "page": self.number, "page_size": self.size, "has_next": has_next, "total": total });
        page[name] = items.into();
        page
    }
}

/// Which part of a list is asked for, where a page need not be (reference: platform API 14, 15).
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SliceQuery {
    /// Items to pass over.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 1_000_000_000_000_000_000_i64, default = 0)]
    skip: Option<Int<0>>,
    /// Items to return at the most.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<Int<1>>,
}

/// A part of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    pub(super) skip: usize,
    pub(super) limit: usize,
}

impl SliceQuery {
    /// The part, or why there is none. Who asks for a page gets that.
    pub(super) fn slice(&self, page: &PageQuery, platform: &Platform) -> Result<Slice, Problem> {
        const MOST: i64 = 1_000;
        if page.is_asked() {
            let Listing { skip, limit, .. } = page.page(platform, PAGE_SIZE)?.listing();
            let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
            return Ok(Slice { skip: number(skip), limit: number(limit.unwrap_or(PAGE_SIZE).into()) });
        }
        let limit = self.limit.map_or(100, |limit| limit.0);
        if limit > MOST {
            return Err(invalid());
        }
        let number = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Slice { skip: number(self.skip.map_or(0, |skip| skip.0)), limit: number(limit) })
    }
}

impl Slice {
    /// What of a whole list is asked for.
    pub(super) fn cut<T>(self, all: impl IntoIterator<Item = T>) -> Vec<T> {
        all.into_iter().skip(self.skip).take(self.limit).collect()
    }
}

/// What the items of a list must have in them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SearchQuery {
    /// Text to find, in upper or lower case; it stands for itself and is no pattern.
    search: Option<String>,
}

impl SearchQuery {
    /// `None`: everything is asked for.
    pub(super) fn search(&self) -> Option<Search> {
        self.search.as_deref().filter(|text| !text.is_empty()).map(Search::new)
    }
}

/// A text to find, in upper or lower case.
pub(super) struct Search(String);

impl Search {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_lowercase())
    }

    /// Is it in any of these?
    pub(super) fn is_in<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> bool {
        texts.into_iter().any(|text| text.to_lowercase().contains(&self.0))
    }
}

/// Where a request comes from, and what its cookies would be.
pub(super) struct Origin {
    pub(super) address: IpAddr,
    /// Whose sign-ins and registrations it counts among.
    pub(super) counted_as: IpAddr,
    pub(super) cookies: Cookies,
    pub(super) trail: Trail,
}

impl FromRequestParts<Platform> for Origin {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, Self::Rejection> {
        let client = parts.extensions.get::<ClientAddress>().copied().unwrap_or_else(|| {
            tracing::error!("a request without its client's address: all such share one limit");
            let unknown = Ipv4Addr::UNSPECIFIED.into();
            ClientAddress { peer: unknown, effective: unknown }
        });
        let security = platform.persistence.security().active();
        let counted_as = security.address_for_sign_ins(&parts.headers, &client);
        let cookies = Cookies::new(&platform.settings, &parts.headers, &parts.uri, scheme(parts));
        Ok(Self { address: client.effective, counted_as, cookies, trail: trail(parts) })
    }
}
