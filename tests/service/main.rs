//! The client against a service that speaks real HTTPS, on loopback. Needs no root.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakout::config::{ListConfig, OneOrMany};
use breakout::durable::Disk;
use breakout::list::{
    FetchError, Fetched, Instance, Judge, Kept, Limits, Schedule, Service, check,
};
use breakout::timestamp::Timestamp;
use breakout_tests::fake_service::{Credentials, FakeService, Mood};
use tempfile::TempDir;

const WORLDWIDE: Instance = Instance::Worldwide;
const CLIENT: &str = "0b1d0f8e-7d6c-4d2a-9f57-1e6f6a4a3c11";
const LIST: &str = r#"[{"id":1,"ips":["40.96.0.0/13"],"tcpPorts":"80,443","category":"Optimize"}]"#;
const HOUR: u64 = 3600;

/// Times that a test can wait for.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    read: Duration::from_millis(700),
    total: Duration::from_secs(3),
};

struct Fixture {
    service: FakeService,
    config: ListConfig,
    _directory: TempDir,
}

impl Fixture {
    fn new(credentials: Credentials) -> Result<Self> {
        let service = FakeService::start(credentials)?;
        let directory = tempfile::tempdir()?;
        let ca = directory.path().join("ca.pem");
        fs::write(&ca, service.ca())?;
        service.publish("2026033100", LIST);
        Ok(Fixture {
            config: ListConfig {
                source: service.url(),
                ca_file: Some(ca),
                ..ListConfig::default()
            },
            service,
            _directory: directory,
        })
    }

    fn client(&self) -> Result<Service> {
        Service::new(&self.config, &self.service.url(), CLIENT, LIMITS)
    }

    async fn check(&self, known: Option<&str>) -> Result<Option<Fetched>> {
        Ok(check(&self.client()?, WORLDWIDE, known).await?)
    }

    /// The error of a look at a service in a mood.
    async fn error(&self, mood: Mood) -> Result<FetchError> {
        self.service.state().mood = mood.clone();
        let outcome = check(&self.client()?, WORLDWIDE, None).await;
        outcome
            .err()
            .with_context(|| format!("{mood:?} is no error"))
    }
}

#[tokio::test]
async fn a_list_is_fetched_once_for_each_version() -> Result<()> {
    let fixture = Fixture::new(Credentials::Good)?;
    let fetched = fixture.check(None).await?.context("there is a list")?;
    ensure!(fetched.endpoints == LIST.as_bytes());
    ensure!(fetched.version.as_deref() == Some("2026033100"));
    ensure!(fixture.check(Some("2026033100")).await?.is_none());
    ensure!(fixture.service.requests("/endpoints/") == 1);
    ensure!(fixture.service.requests("/changes/") == 0);
    fixture.service.state().changes = b"[]".to_vec();
    ensure!(fixture.check(Some("2026022700")).await?.is_some());
    ensure!(fixture.service.requests("/changes/Worldwide/2026022700?") == 1);
    for request in &fixture.service.state().requests {
        ensure!(request.contains(CLIENT), "{request}");
    }
    Ok(())
}

#[tokio::test]
async fn long_answers_are_unpacked() -> Result<()> {
    let fixture = Fixture::new(Credentials::Good)?;
    let long = format!("{LIST}{}", " ".repeat(1 << 20));
    fixture.service.publish("2026033100", long.clone());
    let fetched = fixture.check(None).await?.context("there is a list")?;
    ensure!(fetched.endpoints == long.as_bytes());
    Ok(())
}

#[tokio::test]
async fn what_is_wanted_stands_in_the_request() -> Result<()> {
    let mut fixture = Fixture::new(Credentials::Good)?;
    fixture.config.service_areas = OneOrMany(vec!["Exchange".to_owned(), "Skype".to_owned()]);
    fixture.config.tenant = Some("contoso".to_owned());
    fixture.config.ipv6 = false;
    fixture.check(None).await?;
    let requests = fixture.service.state().requests.clone();
    ensure!(
        requests[1].ends_with("&ServiceAreas=Exchange,Skype&TenantName=contoso&NoIPv6=true"),
        "{requests:?}"
    );
    Ok(())
}

#[tokio::test]
async fn services_that_misbehave_are_named_for_it() -> Result<()> {
    let fixture = Fixture::new(Credentials::Good)?;
    for (mood, part, noticed) in [
        (Mood::Status(429, None), "answered 429", true),
        (Mood::Status(503, Some(120)), "asks to wait 120 s", true),
        (Mood::Hangs, "cannot fetch https://", true),
        (Mood::Drips, "took too long", true),
        (Mood::LogIn, "did not answer with a version", true),
        (
            Mood::Redirects("https://portal.example/".to_owned()),
            "redirects to https://portal.example/",
            true,
        ),
        (Mood::Huge(40 << 20), "longer than 8 MiB", true),
        (Mood::GzipBomb, "longer than 8 MiB", true),
        (Mood::Truncated, "did not answer with a version", true),
    ] {
        let error = fixture.error(mood.clone()).await?;
        let text = error.to_string();
        ensure!(text.contains(part), "{mood:?}: {text}");
        ensure!(!text.contains(CLIENT), "{text}");
        ensure!(error.was_noticed() == noticed, "{mood:?}");
    }
    ensure!(
        fixture.error(Mood::Status(429, None)).await?.wait() == Some(Duration::from_secs(HOUR))
    );
    ensure!(fixture.error(Mood::Resets).await?.was_noticed());
    Ok(())
}

#[tokio::test]
async fn only_the_right_certificate_is_trusted() -> Result<()> {
    for credentials in [Credentials::Expired, Credentials::OtherHost] {
        let fixture = Fixture::new(credentials)?;
        let text = fixture.error(Mood::Well).await?.to_string();
        ensure!(text.contains("certificate"), "{credentials:?}: {text}");
        ensure!(fixture.service.requests("/") == 0, "nothing was asked");
    }
    let mut fixture = Fixture::new(Credentials::Good)?;
    fixture.config.ca_file = None;
    let text = fixture.error(Mood::Well).await?.to_string();
    ensure!(text.contains("certificate"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_proxy_is_used_if_one_is_set() -> Result<()> {
    let mut fixture = Fixture::new(Credentials::Good)?;
    // Nobody listens on the discard port, so that the error tells who was asked.
    fixture.config.proxy = Some("http://127.0.0.1:9".to_owned());
    let error = fixture.error(Mood::Well).await?;
    ensure!(!error.was_noticed(), "{error}");
    ensure!(
        fixture.service.requests("/") == 0,
        "the service was asked past the proxy"
    );
    Ok(())
}

#[tokio::test]
async fn the_fetch_takes_the_interface_that_is_set() -> Result<()> {
    let mut fixture = Fixture::new(Credentials::Good)?;
    fixture.config.interface = Some("lo".to_owned());
    ensure!(fixture.check(None).await?.is_some());
    fixture.config.interface = Some("no-such-link".to_owned());
    let error = fixture.error(Mood::Well).await?;
    ensure!(!error.was_noticed(), "{error}");
    Ok(())
}

/// A service that is down for a month, by a clock of the test's own: it is asked as Microsoft asks, and the list stays.
#[tokio::test]
async fn a_month_without_the_service() -> Result<()> {
    let fixture = Fixture::new(Credentials::Good)?;
    let directory = tempfile::tempdir()?;
    let mut kept = Kept::open(directory.path(), WORLDWIDE)?;
    let interval = Duration::from_secs(HOUR);
    let client = fixture.client()?;
    let start = Timestamp::from_seconds(1_800_000_000);
    let mut now = start;
    // A first day that is well, with a list.
    look(&mut kept, &client, now, interval).await?;
    ensure!(kept.records().len() == 1);
    let month = Duration::from_secs(30 * 24 * HOUR);
    let before = fixture.service.requests("/");
    fixture.service.state().mood = Mood::Status(503, None);
    let mut looks = 0;
    while now.since(start) < month {
        now = kept.schedule.next.context("a next look is due")?;
        if looks == 300 {
            fixture.service.state().mood = Mood::Status(429, Some(7200));
        }
        look(&mut kept, &client, now, interval).await?;
        looks += 1;
        ensure!(kept.schedule.is_due(now.after(interval * 3)));
        ensure!(
            !kept
                .schedule
                .is_due(now.after(Duration::from_secs(HOUR - 1))),
            "{looks}"
        );
    }
    let asked = fixture.service.requests("/") - before;
    ensure!(
        asked == looks && asked <= 30 * 24,
        "{asked} requests in a month"
    );
    ensure!(
        asked > 30 * 24 / 4,
        "{asked} requests in a month are too few"
    );
    ensure!(kept.schedule.failures as usize == looks);
    let age = kept.schedule.age(now).context("the age is known")?;
    ensure!(
        age >= month && kept.schedule.last_success == Some(start),
        "{age:?}"
    );
    // The list is there after a restart, and the first good look brings the age down.
    let mut kept = Kept::open(directory.path(), WORLDWIDE)?;
    ensure!(kept.records().len() == 1 && kept.schedule.failures as usize == looks);
    fixture.service.state().mood = Mood::Well;
    now = kept.schedule.next.context("a next look is due")?;
    look(&mut kept, &client, now, interval).await?;
    ensure!(kept.schedule.age(now) == Some(Duration::ZERO) && kept.schedule.failures == 0);
    Ok(())
}

/// One look, as the controller takes it.
async fn look(kept: &mut Kept, client: &Service, now: Timestamp, interval: Duration) -> Result<()> {
    let disk = Disk::reliable();
    let known = kept.known_version("").map(str::to_owned);
    match check(client, WORLDWIDE, known.as_deref()).await {
        Ok(fetched) => {
            if let Some(fetched) = fetched {
                let judge = Judge::new(&ListConfig::default(), Vec::new());
                kept.add(&disk, &fetched, &judge, now)?;
            }
            kept.schedule.succeeded(now, interval, 0.5);
        }
        Err(error) => kept.schedule.failed(now, &error, interval, 0.5),
    }
    kept.save_schedule(&disk)
}

#[test]
fn a_service_that_is_not_reached_is_tried_again_sooner() {
    let unreached = FetchError::Transport {
        url: String::new(),
        reason: String::new(),
        was_noticed: false,
    };
    let mut schedule = Schedule::default();
    let (now, hour) = (
        Timestamp::from_seconds(1_000_000),
        Duration::from_secs(HOUR),
    );
    let mut waits = Vec::new();
    for _ in 0..9 {
        schedule.failed(now, &unreached, hour, 0.0);
        waits.push(schedule.next.unwrap_or_default().since(now).as_secs());
    }
    assert_eq!(waits, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]);
    // A clock that is set back to long ago does not stop it.
    assert!(schedule.is_due(Timestamp::from_seconds(1000)));
}

#[test]
fn a_long_interval_is_as_long_as_it_says() {
    let mut schedule = Schedule::default();
    let (now, hour) = (
        Timestamp::from_seconds(1_000_000),
        Duration::from_secs(HOUR),
    );
    schedule.succeeded(now, hour * 48, 1.0);
    assert!(!schedule.is_due(now.after(hour * 52)));
    assert!(schedule.is_due(now.after(hour * 53)));
}
