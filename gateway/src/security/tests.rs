use std::net::IpAddr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use mongodb::bson::doc;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::settings::Source;

fn security(changes: &[(&str, &str)]) -> Security {
    let base =
        [("JWT_SECRET_KEY", "0123456789abcdef0123456789abcdef"), ("DOORMAN_ADMIN_PASSWORD", "long-enough-password")];
    let settings = Settings::load(Source::from_pairs(base.iter().chain(changes).copied()));
    Security::new(&settings.unwrap_or_else(|errors| panic!("{errors}")).0)
}

const PRODUCTION: &[(&str, &str)] = &[
    ("ENV", "production"),
    ("HTTPS_ENABLED", "true"),
    ("TOKEN_ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef"),
    ("MEM_ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef"),
];

impl Security {
    #[track_caller]
    fn put(&self, update: Value) -> Result<(), Invalid> {
        let active = self.active();
        let update: Update = serde_json::from_value(update).unwrap();
        let merged = active.stored.merge(&update, &active.effective)?;
        self.apply(merged);
        Ok(())
    }

    fn shown(&self, member: &str) -> Value {
        self.active().effective.to_json()[member].clone()
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn defaults_are_those_of_the_environment() {
    let security =
        security(&[("MEM_AUTO_SAVE_ENABLED", "true"), ("MEM_AUTO_SAVE_FREQ", "30"), ("MEM_DUMP_PATH", "/d/x.bin")]);
    let expected = json!({
        "enable_auto_save": true, "auto_save_memory_enabled": true, "auto_save_frequency_seconds": 60,
        "auto_save_memory_interval_minutes": 1, "dump_path": "/d/x.bin", "ip_whitelist": [], "ip_blacklist": [],
        "trust_x_forwarded_for": false, "xff_trusted_proxies": [], "allow_localhost_bypass": true,
    });
    assert_eq!(Value::from(security.active().effective.to_json()), expected);
}

#[test]
fn localhost_bypass_is_off_in_production_unless_set() {
    for (base, set, expected) in
        [(&[][..], "", true), (&[], "false", false), (PRODUCTION, "", false), (PRODUCTION, "true", true)]
    {
        let security = security(&[base, &[("LOCAL_HOST_IP_BYPASS", set)]].concat());
        assert_eq!(security.shown("allow_localhost_bypass"), json!(expected));
        assert_eq!(security.pins().pins_localhost_bypass(), !set.is_empty());
    }
}

#[test]
fn relative_dump_paths_are_told_in_full() {
    let folder = std::env::current_dir().unwrap();
    let told = security(&[]).shown("dump_path");
    assert_eq!(told.as_str().unwrap(), folder.join("generated/memory_dump.bin").to_str().unwrap());
}

#[test]
fn an_update_changes_what_it_names_and_no_more() {
    let security = security(&[]);
    security.put(json!({ "ip_blacklist": ["192.0.2.1"], "enable_auto_save": true, "unknown": 1 })).unwrap();
    security
        .put(json!({ "ip_blacklist": null, "enable_auto_save": null, "auto_save_frequency_seconds": 120 }))
        .unwrap();
    security.put(json!({})).unwrap();
    assert_eq!(security.shown("ip_blacklist"), json!(["192.0.2.1"]));
    assert_eq!(security.shown("enable_auto_save"), json!(true));
    assert_eq!(security.shown("auto_save_frequency_seconds"), json!(120));
}

#[test]
fn both_spellings_are_understood_and_told() {
    let security = security(&[]);
    security.put(json!({ "auto_save_memory_enabled": true, "auto_save_memory_interval_minutes": 30 })).unwrap();
    assert_eq!(security.shown("enable_auto_save"), json!(true));
    assert_eq!(security.shown("auto_save_frequency_seconds"), json!(1_800));
    security.put(json!({ "auto_save_frequency_seconds": 90 })).unwrap();
    assert_eq!(security.shown("auto_save_memory_interval_minutes"), json!(1.5));
}

#[test]
fn what_was_told_may_be_sent_back_with_either_spelling_changed() {
    for (member, value) in [("auto_save_memory_enabled", json!(true)), ("enable_auto_save", json!(true))] {
        let security = security(&[]);
        security.put(json!({ "auto_save_frequency_seconds": 90 })).unwrap();
        let mut whole = security.active().effective.to_json();
        whole.insert(member.to_owned(), value);
        security.put(whole.into()).unwrap();
        assert_eq!(security.shown("enable_auto_save"), json!(true), "{member}");
        assert_eq!(security.shown("auto_save_frequency_seconds"), json!(90));
        assert_eq!(security.active().stored.dump_path, None, "a path that was only sent back is not set");
    }
    let refused =
        security(&[]).put(json!({ "auto_save_frequency_seconds": 60, "auto_save_memory_interval_minutes": 5 }));
    assert_eq!(refused.unwrap_err().member, "auto_save_frequency_seconds");
}

#[test]
fn a_wrong_update_is_refused_as_a_whole_and_named() {
    let security = security(&[]);
    for (update, member) in [
        (json!({ "auto_save_frequency_seconds": 59 }), "auto_save_frequency_seconds"),
        (json!({ "auto_save_memory_interval_minutes": 0 }), "auto_save_memory_interval_minutes"),
        (json!({ "auto_save_memory_interval_minutes": -5 }), "auto_save_memory_interval_minutes"),
        (json!({ "ip_whitelist": ["10.0.0.1", ""] }), "ip_whitelist"),
        (json!({ "auto_save_memory_interval_minutes": 1e300 }), "auto_save_memory_interval_minutes"),
        (json!({ "xff_trusted_proxies": ["proxy.example.com"] }), "xff_trusted_proxies"),
        (json!({ "dump_path": " " }), "dump_path"),
    ] {
        let mut update = update;
        update["allow_localhost_bypass"] = json!(false);
        assert_eq!(security.put(update.clone()).unwrap_err().member, member, "{update}");
        assert_eq!(security.active().stored, SecuritySettings::default(), "{update}");
    }
    let refused = security.put(json!({ "ip_blacklist": ["10.0.0.1", "10.0.0.0/33", "host"] })).unwrap_err();
    assert!(refused.to_string().contains(r#""10.0.0.0/33", "host""#), "{refused}");
}

#[test]
fn the_environment_wins() {
    let pinned =
        [("LOCAL_HOST_IP_BYPASS", "false"), ("trust_x_forwarded_for", "true"), ("xff_trusted_proxies", "10.0.0.0/8")];
    let security = security(&pinned);
    security
        .put(json!({
            "allow_localhost_bypass": true, "trust_x_forwarded_for": false, "xff_trusted_proxies": [], "ip_whitelist": ["203.0.113.9"]
        }))
        .unwrap();
    assert_eq!(security.shown("allow_localhost_bypass"), json!(false));
    assert_eq!(security.shown("trust_x_forwarded_for"), json!(true));
    assert_eq!(security.shown("xff_trusted_proxies"), json!(["10.0.0.0/8"]));
    assert!(security.pins().pins_localhost_bypass());
    let active = security.active();
    assert_eq!(active.admit(&HeaderMap::new(), ip("127.0.0.1")), Err(Refusal::NotAllowed));
    assert_eq!(active.admit(&headers(&[("x-forwarded-for", "203.0.113.9")]), ip("10.0.0.1")), Ok(()));
}

#[test]
fn the_stored_document_keeps_only_what_was_set() {
    let security = security(&[]);
    security
        .put(json!({ "enable_auto_save": true, "ip_whitelist": ["10.0.0.0/8"], "auto_save_frequency_seconds": 90 }))
        .unwrap();
    let stored = security.active().stored.clone();
    let expected = doc! {
        "type": "security_settings", "enable_auto_save": true, "auto_save_frequency_seconds": 90_i64,
        "ip_whitelist": ["10.0.0.0/8"],
    };
    assert_eq!(stored.to_document(), expected);
    assert_eq!(SecuritySettings::from_document(&expected), stored);
}

#[test]
fn an_old_store_is_read_as_far_as_it_can_be() {
    let document = doc! {
        "_id": "x", "type": "security_settings", "enable_auto_save": "true", "auto_save_frequency_seconds": 10_i64,
        "dump_path": null, "ip_whitelist": ["10.0.0.0/8", "nonsense", " "], "ip_blacklist": "10.0.0.1",
        "trust_x_forwarded_for": 7,
    };
    let security = security(&[]);
    security.apply(SecuritySettings::from_document(&document));
    assert_eq!(security.shown("auto_save_frequency_seconds"), json!(60));
    assert_eq!(security.shown("ip_whitelist"), json!(["10.0.0.0/8", "nonsense"]));
    assert_eq!(security.shown("ip_blacklist"), json!([]));
    assert_eq!(security.shown("trust_x_forwarded_for"), json!(false));
    assert_eq!(security.active().admit(&HeaderMap::new(), ip("10.0.0.1")), Ok(()));
    assert_eq!(security.active().admit(&HeaderMap::new(), ip("192.0.2.1")), Err(Refusal::NotAllowed));
}

#[test]
fn an_allow_list_that_can_t_be_read_lets_nobody_in() {
    let security = security(&[]);
    security.apply(SecuritySettings { ip_whitelist: Some(vec!["nonsense".into()]), ..SecuritySettings::default() });
    assert_eq!(security.active().admit(&HeaderMap::new(), ip("192.0.2.1")), Err(Refusal::NotAllowed));
}

#[test]
fn the_mirror_file_brings_the_settings_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new/security_settings.json");
    assert_eq!(SecuritySettings::from_mirror(&file), None);
    let settings =
        SecuritySettings { dump_path: Some("/d/".into()), enable_auto_save: Some(false), ..Default::default() };
    settings.mirror(&file);
    assert_eq!(SecuritySettings::from_mirror(&file), Some(settings));
    std::fs::write(&file, "[]").unwrap();
    assert_eq!(SecuritySettings::from_mirror(&file), None);
}

#[test]
fn a_change_is_told_once() {
    let security = security(&[]);
    let changes = security.changes();
    security.put(json!({})).unwrap();
    assert!(!changes.has_changed().unwrap());
    security.put(json!({ "enable_auto_save": true })).unwrap();
    assert!(changes.has_changed().unwrap());
}

#[test]
fn lists_decide_in_order_and_local_callers_may_skip_them() {
    let security = security(&[("DOORMAN_IN_DOCKER", "true")]);
    security
        .put(json!({ "ip_whitelist": ["10.0.0.0/8", "2001:db8::/32"], "ip_blacklist": ["10.0.0.66", "2001:db8::66"] }))
        .unwrap();
    let admit = |peer, sent: &[(&str, &str)]| security.active().admit(&headers(sent), ip(peer));
    assert_eq!(admit("10.1.1.1", &[]), Ok(()));
    assert_eq!(admit("::ffff:10.1.1.1", &[]), Ok(()));
    assert_eq!(admit("10.0.0.66", &[]), Err(Refusal::Denied));
    assert_eq!(admit("2001:db8::66", &[]), Err(Refusal::Denied));
    assert_eq!(admit("192.0.2.1", &[]), Err(Refusal::NotAllowed));
    for local in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "172.17.0.1", "192.168.65.1"] {
        assert_eq!(admit(local, &[]), Ok(()), "{local}");
        for header in ["x-forwarded-for", "x-real-ip", "cf-connecting-ip", "forwarded"] {
            assert_eq!(admit(local, &[(header, "10.1.1.1")]), Err(Refusal::NotAllowed), "{local} {header}");
        }
    }
    assert_eq!(admit("192.0.2.1", &[("x-forwarded-for", "10.1.1.1")]), Err(Refusal::NotAllowed));
    security.put(json!({ "allow_localhost_bypass": false })).unwrap();
    assert_eq!(security.active().admit(&HeaderMap::new(), ip("127.0.0.1")), Err(Refusal::NotAllowed));
}

#[test]
fn dockers_addresses_are_local_only_when_the_settings_say_so() {
    let security = security(&[]);
    security.put(json!({ "ip_whitelist": ["10.0.0.0/8"] })).unwrap();
    assert_eq!(security.active().admit(&HeaderMap::new(), ip("172.17.0.1")), Err(Refusal::NotAllowed));
}

#[test]
fn production_believes_nobody_without_a_list_and_has_no_local_bypass() {
    let security = security(PRODUCTION);
    security.put(json!({ "trust_x_forwarded_for": true, "ip_whitelist": ["203.0.113.9"] })).unwrap();
    let forwarded = headers(&[("x-forwarded-for", "203.0.113.9")]);
    assert_eq!(security.active().admit(&forwarded, ip("192.0.2.1")), Err(Refusal::NotAllowed));
    assert_eq!(security.active().admit(&HeaderMap::new(), ip("127.0.0.1")), Err(Refusal::NotAllowed));
    assert_eq!(security.active().effective.warnings().len(), 1);
    security.put(json!({ "xff_trusted_proxies": ["192.0.2.0/24"] })).unwrap();
    assert_eq!(security.active().admit(&forwarded, ip("192.0.2.1")), Ok(()));
    assert!(security.active().effective.warnings().is_empty());
}

fn address() -> impl Strategy<Value = IpAddr> {
    // Few bits, so that lists are hit.
    prop_oneof![
        (0..16_u32).prop_map(|bits| IpAddr::V4((0x0a00_0000 | bits).into())),
        (0..16_u128).prop_map(|bits| IpAddr::V6((0x2001_0db8 << 96 | bits).into())),
    ]
}

fn entries() -> impl Strategy<Value = Vec<String>> {
    let entry = prop_oneof![
        3 => (address(), 0..5_u8).prop_map(|(address, wide)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            format!("{address}/{}", longest - wide)
        }),
        3 => address().prop_map(|address| address.to_string()),
        1 => Just("nonsense".to_owned()),
    ];
    prop::collection::vec(entry, 0..5)
}

fn lists(address: IpAddr, entries: &[String]) -> bool {
    let is_in =
        |entry: &String| entry.parse::<IpNet>().is_ok_and(|net| net.contains(&address)) || entry.parse() == Ok(address);
    entries.iter().any(is_in)
}

proptest! {
    #[test]
    fn the_filter_decides_as_the_rules_say(allow in entries(), deny in entries(), peer in address()) {
        let security = security(&[]);
        let stored =
            SecuritySettings { ip_whitelist: Some(allow.clone()), ip_blacklist: Some(deny.clone()), ..Default::default() };
        security.apply(stored);
        let expected = if !allow.is_empty() && !lists(peer, &allow) {
            Err(Refusal::NotAllowed)
        } else if lists(peer, &deny) {
            Err(Refusal::Denied)
        } else {
            Ok(())
        };
        prop_assert_eq!(security.active().admit(&HeaderMap::new(), peer), expected);
    }

    #[test]
    fn headers_of_strangers_never_change_the_decision(
        allow in entries(), deny in entries(), peer in address(), claimed in address(), proxies in entries(),
    ) {
        prop_assume!(!proxies.is_empty() && !lists(peer, &proxies));
        let security = security(&[]);
        security.apply(SecuritySettings {
            ip_whitelist: Some(allow), ip_blacklist: Some(deny), trust_x_forwarded_for: Some(true),
            xff_trusted_proxies: Some(proxies), ..Default::default()
        });
        let claimed = claimed.to_string();
        let sent = headers(&[("x-forwarded-for", &claimed), ("x-real-ip", &claimed), ("cf-connecting-ip", &claimed)]);
        let active = security.active();
        prop_assert_eq!(active.admit(&sent, peer), active.admit(&HeaderMap::new(), peer));
    }
}
