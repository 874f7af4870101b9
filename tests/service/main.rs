//! The client against a service that speaks real HTTPS, on loopback. Needs no root.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;
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
    again: [Duration::from_millis(1); 2],
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
        (Mood::Status(503, None), "a fault of its own", true),
        (
            Mood::Status(403, None),
            "does not let this gateway ask",
            true,
        ),
        (Mood::Status(404, None), "is [list] source right?", true),
        (Mood::Status(304, None), "a cache in between is wrong", true),
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

/// A proxy that gives everybody this answer. Returns its URL.
fn proxy(answer: &'static str) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
                line.clear();
            }
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    Ok(address.to_string())
}

#[tokio::test]
async fn proxies_that_refuse_say_what_they_want() -> Result<()> {
    let mut fixture = Fixture::new(Credentials::Good)?;
    const WHO: &str = "HTTP/1.1 407 -\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n";
    let asks = proxy(WHO)?;
    fixture.config.proxy = Some(format!("http://{asks}"));
    let error = fixture.error(Mood::Well).await?;
    let text = error.to_string();
    ensure!(
        text.contains("answered 407: it wants a user name and a password"),
        "{text}"
    );
    ensure!(
        !error.is_refused_password() && !error.was_noticed(),
        "{error:?}"
    );

    fixture.config.proxy = Some(format!("http://me:secret@{asks}"));
    let error = fixture.error(Mood::Well).await?;
    let text = error.to_string();
    ensure!(
        text.contains("refuses the user name and password"),
        "{text}"
    );
    ensure!(
        !text.contains("secret") && error.is_refused_password(),
        "{text}"
    );
    // An account that is asked for all the time is locked.
    let (mut schedule, now) = (Schedule::default(), Timestamp::from_seconds(1_000_000));
    schedule.failed(now, &error, Duration::from_secs(HOUR), 0.5);
    ensure!(!schedule.is_due(now.after(Duration::from_secs(23 * HOUR))));

    // Without TLS the answer's headers are seen as well.
    let plain = Service::new(&fixture.config, "http://localhost:1", CLIENT, LIMITS)?;
    let error = check(&plain, WORLDWIDE, None)
        .await
        .err()
        .context("an error")?;
    ensure!(error.to_string().contains("it offers NTLM only"), "{error}");

    let refuses = proxy("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")?;
    fixture.config.proxy = Some(format!("http://{refuses}"));
    let text = fixture.error(Mood::Well).await?.to_string();
    ensure!(
        text.contains("refuses to connect to https://localhost"),
        "{text}"
    );
    ensure!(fixture.service.requests("/") == 0);
    Ok(())
}

#[tokio::test]
async fn a_fault_that_passes_in_a_moment_is_none() -> Result<()> {
    let fixture = Fixture::new(Credentials::Good)?;
    fixture.service.state().mood = Mood::EverySecond(500);
    ensure!(fixture.check(None).await?.is_some());
    ensure!(fixture.service.requests("/version/") == 2);
    // One that was there at the last look already is not asked about thrice.
    let once = fixture.client()?.once();
    fixture.service.state().mood = Mood::Status(500, None);
    let before = fixture.service.requests("/");
    ensure!(check(&once, WORLDWIDE, None).await.is_err());
    ensure!(fixture.service.requests("/") == before + 1);
    Ok(())
}

#[tokio::test]
async fn absurd_waits_are_cut() -> Result<()> {
    let fixture = Fixture::new(Credentials::Good)?;
    let now = Timestamp::from_seconds(1_000_000);
    for (asked, hours) in [(u32::MAX, 25), (0, 2)] {
        let error = fixture.error(Mood::Status(503, Some(asked))).await?;
        let mut schedule = Schedule::default();
        schedule.failed(now, &error, Duration::from_secs(HOUR), 0.0);
        let due = schedule.next.map(|next| next.since(now).as_secs());
        ensure!(
            due.is_some_and(|due| due >= HOUR && due < hours * HOUR),
            "{asked}: {due:?}"
        );
    }
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
        // The first failure is asked about twice more.
        asked == looks + 2 && asked <= 30 * 24 + 2,
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
    let client = match kept.schedule.failures {
        0 => client.clone(),
        _ => client.once(),
    };
    match check(&client, WORLDWIDE, known.as_deref()).await {
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
