//! `breakout top`: what the controller does, as it does it.

mod model;
mod view;

use std::io::{IsTerminal, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow};
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures_util::StreamExt;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::control::{Client, EventsQuery, Stats, Status};
use crate::events;
use crate::exit::{Code, WithCode};
use model::Model;

/// Events that are kept to be scrolled through.
const EVENTS: usize = 200;

/// Everything that is asked for in one turn.
struct Answer {
    status: Status,
    stats: Stats,
    events: Vec<events::Event>,
}

/// Shows the controller until the operator has seen enough. The terminal is left as it was, also after a signal.
pub(super) async fn top(socket: &Path, every: Duration) -> Result<()> {
    if !stdout().is_terminal() || !stdin().is_terminal() {
        return Err(anyhow!(
            "breakout top needs a terminal; use: breakout status --json, breakout stats --json"
        ))
        .code(Code::Usage);
    }
    let mut signals = Signals::new()?;
    // A controller that is not there at the start is a mistake; one that goes away later may come back.
    let mut source = Source {
        socket: socket.to_owned(),
        client: Some(Client::connect(socket).await.map_err(|error| {
            let code = error.code();
            crate::exit::coded(error.into(), code)
        })?),
    };
    let mut model = Model::new(std::env::var_os("NO_COLOR").is_none());
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal, &mut source, &mut model, &mut signals, every).await;
    ratatui::try_restore()?;
    shown
}

async fn show(
    terminal: &mut DefaultTerminal,
    source: &mut Source,
    model: &mut Model,
    signals: &mut Signals,
    every: Duration,
) -> Result<()> {
    let mut keys = EventStream::new();
    let mut turn = interval(every);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = signals.wait() => return Ok(()),
            _ = turn.tick() => if !model.is_paused() {
                match source.ask().await {
                    Ok(answer) => model.take(answer),
                    Err(error) => model.fail(format!("{error:#}")),
                }
            },
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind == KeyEventKind::Press => {
                    if is_end(key) {
                        return Ok(());
                    }
                    model.press(key.code);
                }
                Some(Ok(_)) => {}
                // The terminal is gone.
                Some(Err(_)) | None => return Ok(()),
            },
        }
        terminal.draw(|frame| view::draw(frame, model))?;
    }
}

fn is_end(key: KeyEvent) -> bool {
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

/// The signals that would end the program and leave the terminal as it must not be left.
struct Signals {
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// The controller, which may be restarted meanwhile.
struct Source {
    socket: PathBuf,
    client: Option<Client>,
}

impl Source {
    async fn ask(&mut self) -> Result<Answer> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket).await?,
        };
        let status = client.status().await?;
        let stats = client.stats().await?;
        let mut events = client.events(EventsQuery { after: 0 }).await?.events;
        events.drain(..events.len().saturating_sub(EVENTS));
        self.client = Some(client);
        Ok(Answer {
            status,
            stats,
            events,
        })
    }
}
