//! Drawing: 80 columns and 24 lines are enough, more are used.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::model::{Model, Rate};
use crate::control::{ListSummary, Status};
use crate::health::State;
use crate::timestamp::for_people;

/// Lines of events on the smallest terminal.
const EVENT_LINES: u16 = 5;
const KEYS: &str = "q quit  p pause  b bits/packets  up/down scroll events";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let alerts = alerts(model);
    let egress_lines = model.answer.as_ref().map_or(1, |answer| {
        let ways = answer.status.egress.values();
        1 + ways
            .flat_map(|egress| [&egress.v4, &egress.v6])
            .filter(|way| way.standing.is_some())
            .count()
    });
    // What there is beyond the smallest terminal.
    let spare = usize::from(frame.area().height.saturating_sub(24));
    let head_text = head_lines(model, 1 + spare / 8);
    let [head, alert_area, egresses, rates, events, keys] = Layout::vertical([
        Constraint::Length(lines(head_text.len())),
        Constraint::Length(lines(alerts.len().min(3 + spare / 4))),
        Constraint::Length(lines(egress_lines.min(7 + spare / 2))),
        Constraint::Min(4),
        Constraint::Length(EVENT_LINES + 1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(head_text), head);
    frame.render_widget(Paragraph::new(alerts), alert_area);
    if let Some(answer) = &model.answer {
        draw_egresses(frame, egresses, &answer.status, model.colours);
    }
    let [sets, reasons] =
        Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)])
            .spacing(2)
            .areas(rates);
    draw_rates(frame, sets, "ENDPOINT SET", &model.sets, model);
    draw_rates(frame, reasons, "REASON", &model.reasons, model);
    draw_events(frame, events, model);
    let paused = if model.is_paused() { "  PAUSED" } else { "" };
    frame.render_widget(
        Paragraph::new(Line::styled(format!("{KEYS}{paused}"), dim())),
        keys,
    );
}

fn lines(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

fn heading() -> Style {
    Style::new().add_modifier(Modifier::REVERSED)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// A colour, where colours are wanted; the words say the same.
fn coloured(colours: bool, colour: Color) -> Style {
    if colours {
        Style::new().fg(colour)
    } else {
        Style::new()
    }
}

/// The controller, and at most so many lists.
fn head_lines(model: &Model, lists: usize) -> Vec<Line<'_>> {
    let Some(answer) = &model.answer else {
        return vec![Line::raw("breakout: waiting for the controller")];
    };
    let status = &answer.status;
    let uptime = for_people(Duration::from_secs(status.uptime_seconds));
    let list_line = |list: &ListSummary| {
        let mut follow = status.follow.iter();
        let follow = follow.find(|follow| follow.instance == list.instance);
        let age = follow.and_then(|follow| follow.age_seconds);
        let age = age.map_or("not followed".to_owned(), |age| {
            format!("{} old", for_people(Duration::from_secs(age)))
        });
        let version = list.version.as_deref().unwrap_or("unknown");
        Line::raw(format!(
            "list {} {version} from {}, {age}",
            list.instance, list.source
        ))
    };
    let mut lines = vec![Line::from(vec![
        Span::styled(
            format!("breakout {}", status.version),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::raw(format!(
            "  up {uptime}  generation {}  {} IPv4 and {} IPv6 prefixes",
            status.ruleset.generation, status.ruleset.steered_v4, status.ruleset.steered_v6
        )),
    ])];
    lines.extend(status.lists.iter().take(lists).map(list_line));
    lines
}

fn alerts(model: &Model) -> Vec<Line<'_>> {
    let style = coloured(model.colours, Color::Red).add_modifier(Modifier::BOLD);
    let problem = model.problem.iter().map(|problem| {
        Line::styled(
            format!("!! the controller does not answer: {problem}"),
            style,
        )
    });
    let alerts = model.answer.iter().flat_map(|answer| &answer.status.alerts);
    let alerts = alerts.map(|alert| Line::styled(format!("!! {alert}"), style));
    problem.chain(alerts).collect()
}

fn draw_egresses(frame: &mut Frame<'_>, area: Rect, status: &Status, colours: bool) {
    let rows = status.egress.iter().flat_map(|(name, egress)| {
        [("IPv4", &egress.v4), ("IPv6", &egress.v6)]
            .into_iter()
            .filter_map(move |(family, way)| {
                let standing = way.standing.as_ref()?;
                let colour = match standing.state {
                    State::Up => Color::Green,
                    State::Degraded => Color::Yellow,
                    State::Down => Color::Red,
                };
                let measure = standing.measure.as_ref();
                let loss = measure.map_or("-".to_owned(), |m| format!("{:.1} %", m.loss * 100.0));
                let latency = measure.and_then(|measure| measure.latency_ms);
                Some(Row::new([
                    Cell::new(format!("{name} ({})", egress.interface)),
                    Cell::new(family),
                    Cell::new(standing.state.name()).style(coloured(colours, colour)),
                    Cell::new(format!("{:.1}", standing.score)),
                    Cell::new(loss),
                    Cell::new(latency.map_or("-".to_owned(), |time| format!("{time:.0} ms"))),
                    Cell::new(standing.why.clone().unwrap_or_default()),
                ]))
            })
    });
    let widths = [
        Constraint::Length(20),
        Constraint::Length(4),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Fill(1),
    ];
    let header = ["EGRESS", "", "STATE", "SCORE", "LOSS", "LATENCY", "WHY"];
    let table = Table::new(rows, widths).header(Row::new(header).style(heading()));
    frame.render_widget(table, area);
}

fn draw_rates(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &'static str,
    rates: &[Rate],
    model: &Model,
) {
    let unit = if model.in_bits { "BIT/S" } else { "PACKETS/S" };
    let rows = rates.iter().map(|rate| {
        let value = if model.in_bits {
            rate.bits_per_second
        } else {
            rate.packets_per_second
        };
        let style = if rate.steers {
            coloured(model.colours, Color::Green)
        } else {
            Style::new()
        };
        Row::new([
            Cell::new(if rate.steers { ">" } else { " " }),
            Cell::new(rate.name.clone()),
            Cell::new(Line::raw(scaled(value)).right_aligned()),
            Cell::new(Line::raw(scaled(rate.packets as f64)).right_aligned()),
        ])
        .style(style)
    });
    let widths = [
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(7),
    ];
    let header = Row::new([
        Cell::new(""),
        Cell::new(title),
        Cell::new(Line::raw(unit).right_aligned()),
        Cell::new(Line::raw("PACKETS").right_aligned()),
    ]);
    let table = Table::new(rows, widths).header(header.style(heading()));
    frame.render_widget(table, area);
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let room = usize::from(area.height.saturating_sub(1));
    let events = model
        .answer
        .iter()
        .flat_map(|answer| answer.events.iter().rev());
    let mut lines = vec![Line::styled(
        format!("{:width$}", "EVENTS", width = usize::from(area.width)),
        heading(),
    )];
    lines.extend(events.skip(model.scrolled).take(room).map(|event| {
        let why = if event.why.is_empty() { "" } else { ": " };
        Line::raw(format!(
            "{} {} {} {}{why}{}",
            event.at, event.kind, event.subject, event.what, event.why
        ))
    }));
    frame.render_widget(Paragraph::new(lines), area);
}

/// A number with at most four digits.
fn scaled(value: f64) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 9999.5 {
            return if unit.is_empty() || value >= 99.95 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests;
