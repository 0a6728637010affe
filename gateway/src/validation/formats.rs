//! Formats of text (reference: gateway behaviour 16.3).

use doorman_crds::api::Format;
use uuid::Uuid;

/// Checks text against a format.
///
/// # Errors
/// What the client is told.
pub(super) fn check(format: Format, text: &str) -> Result<(), &'static str> {
    let (is_right, message) = match format {
        Format::Email => (is_email(text), "Invalid email format"),
        Format::Url => (is_url(text), "Invalid URL format"),
        Format::Date => (is_date(text), "Invalid date format (YYYY-MM-DD)"),
        Format::DateTime => (is_date_time(text), "Invalid datetime format (ISO 8601)"),
        Format::Uuid => (Uuid::try_parse(text).is_ok(), "Invalid UUID format"),
    };
    if is_right { Ok(()) } else { Err(message) }
}

fn is_email(text: &str) -> bool {
    let Some((local, host)) = text.split_once('@') else { return false };
    let Some((domain, last)) = host.rsplit_once('.') else { return false };
    let consists = |text: &str, more: &[u8]| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    consists(local, b"._%+-")
        && consists(domain, b".-")
        && last.len() >= 2
        && last.bytes().all(|byte| byte.is_ascii_alphabetic())
}

fn is_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return false;
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    // RFC 3986 2: reserved, unreserved and escaped.
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    host.contains('.') && host.split('.').all(is_label) && rest.bytes().all(is_usual)
}

fn is_date(text: &str) -> bool {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text.as_bytes() else { return false };
    let number = |digits: &[u8]| {
        let digit = |sum: i16, digit: &u8| digit.is_ascii_digit().then(|| sum * 10 + i16::from(digit - b'0'));
        digits.iter().try_fold(0, digit)
    };
    let (Some(year), Some(month), Some(day)) =
        (number(&[*y1, *y2, *y3, *y4]), number(&[*m1, *m2]), number(&[*d1, *d2]))
    else {
        return false;
    };
    jiff::civil::Date::new(year, month as i8, day as i8).is_ok()
}

fn is_date_time(text: &str) -> bool {
    // Names of time zones in brackets are RFC 9557.
    !text.contains('[') && (text.parse::<jiff::Timestamp>().is_ok() || text.parse::<jiff::civil::DateTime>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_tell_right_from_wrong() {
        let table: [(Format, &[&str], &[&str]); 5] = [
            (
                Format::Email,
                &["a@b.de", "a.b_c%d+e-f@x-y.z.info", "A1@B2.CC"],
                &["", "a", "@b.de", "a@b", "a@.de", "a@b.d", "a@b.d1", "a b@c.de", "a@b@c.de", "ä@b.de", "a@b.de\n"],
            ),
            (
                Format::Url,
                &["http://a.b", "https://www.a-b.info:80/c?d=e#f", "HTTPS://a.b/%20(x)", "http://1.2.3.4/"],
                &[
                    "",
                    "a.b",
                    "ftp://a.b",
                    "http://a",
                    "http://",
                    "http://a..b",
                    "http://.b",
                    "http://a.b/ c",
                    "http://a.b/ä",
                ],
            ),
            (
                Format::Date,
                &["2024-02-29", "0001-01-01", "9999-12-31"],
                &[
                    "",
                    "2023-02-29",
                    "2024-13-01",
                    "2024-00-01",
                    "2024-1-1",
                    "24-01-01",
                    "2024-01-01T00:00:00",
                    "2024/01/01",
                    "+024-01-01",
                ],
            ),
            (
                Format::DateTime,
                &[
                    "2024-01-01T10:00:00",
                    "2024-01-01T10:00:00Z",
                    "2024-01-01T10:00:00.123456+02:00",
                    "2024-01-01 10:00:00",
                    "2024-01-01T10:00Z",
                ],
                &[
                    "",
                    "now",
                    "2024-13-01T10:00:00",
                    "2024-01-01T25:00:00",
                    "10:00:00",
                    "2024-01-01T10:00:00+02:00[Europe/Berlin]",
                ],
            ),
            (
                Format::Uuid,
                &[
                    "67e55044-10b1-426f-9247-bb680e5fe0c8",
                    "67E5504410B1426F9247BB680E5FE0C8",
                    "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
                    "urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8",
                ],
                &["", "67e55044", "67e55044-10b1-426f-9247-bb680e5fe0cg", "67e55044-10b1-426f-9247-bb680e5fe0c8 "],
            ),
        ];
        for (format, right, wrong) in table {
            for text in right {
                assert_eq!(check(format, text), Ok(()), "{format:?} {text}");
            }
            for text in wrong {
                assert!(check(format, text).is_err(), "{format:?} {text}");
            }
        }
    }
}
