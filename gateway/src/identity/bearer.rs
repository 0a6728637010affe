//! Where a request carries its token.

use http::{HeaderMap, header};

/// Cookie with the token.
pub const ACCESS_COOKIE: &str = "access_token_cookie";
/// Cookie with the CSRF token, readable by scripts.
pub const CSRF_COOKIE: &str = "csrf_token";

/// The token of a request: that of the cookie, which wins even when it is bad; else that of the one `Authorization`
/// header, after `Bearer` or as its only word.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    cookie(headers, ACCESS_COOKIE).or_else(|| {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() {
            return None;
        }
        let mut words = value.split_ascii_whitespace();
        match (words.next()?, words.next(), words.next()) {
            (scheme, None, None) if scheme.eq_ignore_ascii_case("bearer") => None,
            (token, None, None) => Some(token),
            (scheme, Some(token), None) if scheme.eq_ignore_ascii_case("bearer") => Some(token),
            _ => None,
        }
    })
}

/// The first cookie of this name; an empty one counts as none.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(found, _)| found.trim() == name)?;
    let value = value.trim();
    let unquoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    (!unquoted.is_empty()).then_some(unquoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sent: &[(http::HeaderName, &str)], expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(name, value.parse().unwrap());
        }
        assert_eq!(bearer(&headers), expected, "{sent:?}");
    }

    #[test]
    fn a_token_is_taken_from_cookie_then_header() {
        use http::header::{AUTHORIZATION, COOKIE};
        check(&[], None);
        check(&[(AUTHORIZATION, "Bearer abc")], Some("abc"));
        check(&[(AUTHORIZATION, "bEARER  abc ")], Some("abc"));
        check(&[(AUTHORIZATION, "abc")], Some("abc"));
        check(&[(AUTHORIZATION, "Bearer")], None);
        check(&[(AUTHORIZATION, "Basic abc")], None);
        check(&[(AUTHORIZATION, "Bearer abc def")], None);
        check(&[(AUTHORIZATION, "Bearer abc"), (AUTHORIZATION, "Bearer def")], None);
        check(&[(AUTHORIZATION, "Bearer good"), (COOKIE, "access_token_cookie=bad")], Some("bad"));
        check(&[(AUTHORIZATION, "Bearer good"), (COOKIE, "access_token_cookie=")], Some("good"));
        check(&[(COOKIE, "a=b; access_token_cookie=\"abc\"; access_token_cookie=def")], Some("abc"));
        check(&[(COOKIE, "a=b"), (COOKIE, "access_token_cookie=abc")], Some("abc"));
        check(&[(COOKIE, "xaccess_token_cookie=abc")], None);
    }
}
