//! The comparison as plots. Pure: pictures are strings.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::{BLACK, Circle, Color as _};
use plotters::prelude::{
    ChartBuilder, DrawingArea, EmptyElement, IntoDrawingArea as _, IntoFont as _, LineSeries, PathElement,
    RGBColor, Rectangle, SVGBackend, SeriesLabelPosition, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::compare::{Operation, System};
use crate::comparison::{BUDGET_VALUE_BYTES, Comparison, Row};
use crate::table::number;

/// A file beside the page.
pub(crate) struct Plot {
    pub(crate) file: &'static str,
    pub(crate) title: String,
    pub(crate) svg: String,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SYSTEMS: [System; 3] = [System::Etcd, System::Calls, System::Stream];
/// The clients of the bars, if these were measured.
const BAR_CLIENTS: usize = 64;
const FONT: (&str, i32) = ("sans-serif", 13);

/// One curve against clients.
struct Panel {
    title: &'static str,
    of: fn(&Row) -> f64,
}

const PANELS: [Panel; 3] = [
    Panel { title: "operations/s", of: |row| row.per_second },
    Panel { title: "server CPU, µs an operation", of: |row| row.server_cpu_us },
    Panel { title: "p99, ms", of: |row| row.p99_us / 1e3 },
];

pub(crate) fn draw(comparison: &Comparison) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for (operation, file) in [(Operation::DurablePut, "durable-put.svg"), (Operation::Get, "quorum-get.svg")]
    {
        let rows: Vec<_> = comparison
            .rows
            .iter()
            .filter(|row| row.operation == operation && row.value_bytes == BUDGET_VALUE_BYTES)
            .collect();
        if clients(&rows).len() > 1 {
            let title =
                format!("{}, values of {BUDGET_VALUE_BYTES} bytes, against clients", operation.name());
            plots.push(Plot { file, title, svg: curves(&rows)? });
        }
    }
    let bars = bars(comparison);
    if !bars.is_empty() {
        let title = "Server CPU of an operation, etcd's being 1".to_owned();
        plots.push(Plot { file: "cpu-ratios.svg", title, svg: draw_bars(&bars)? });
    }
    Ok(plots)
}

fn color(system: System) -> RGBColor {
    match system {
        System::Etcd => RGBColor(0x75, 0x75, 0x75),
        System::Calls => RGBColor(0x15, 0x65, 0xc0),
        System::Stream => RGBColor(0xd8, 0x43, 0x15),
    }
}

/// In ascending order.
fn clients(rows: &[&Row]) -> Vec<usize> {
    let mut clients: Vec<_> = rows.iter().map(|row| row.clients).collect();
    clients.sort_unstable();
    clients.dedup();
    clients
}

fn curves(rows: &[&Row]) -> Result<String> {
    picture((960, 300), |area| {
        for (place, (area, panel)) in area.split_evenly((1, PANELS.len())).iter().zip(&PANELS).enumerate() {
            // The first one's curves leave room for the names; they are the same for all.
            draw_panel(area, panel, rows, place == 0)?;
        }
        Ok(())
    })
}

/// Numbers of clients stand side by side, however far apart they are.
fn draw_panel(area: &Area<'_>, panel: &Panel, rows: &[&Row], has_names: bool) -> Result<()> {
    let clients = clients(rows);
    let place =
        |row: &Row| clients.iter().position(|clients| *clients == row.clients).map(|place| place as f64);
    let top = rows.iter().map(|row| (panel.of)(row)).fold(0.0, f64::max) * 1.15;
    let right = clients.len() as f64 - 0.7;
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, FONT)
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d(-0.3..right, 0.0..top.max(1e-9))
        .map_err(failed)?;
    let label = |place: &f64| {
        let is_whole = (place - place.round()).abs() < 1e-6 && *place > -0.5;
        let clients = clients.get(place.round() as usize).filter(|_| is_whole);
        clients.map_or_else(String::new, usize::to_string)
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(clients.len() * 2)
        .x_label_formatter(&label)
        .x_desc("clients")
        .y_labels(6)
        .y_label_formatter(&|figure| number(*figure, usize::from(top < 10.0)))
        .label_style(FONT.into_font())
        .draw()
        .map_err(failed)?;
    for system in SYSTEMS {
        let points: Vec<_> = rows
            .iter()
            .filter(|row| row.system == system)
            .filter_map(|row| Some((place(row)?, (panel.of)(row))))
            .collect();
        let style = color(system).stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))
            .map_err(failed)?
            .label(system.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        chart
            .draw_series(points.iter().map(|point| Circle::new(*point, 3, color(system).filled())))
            .map_err(failed)?;
    }
    if !has_names {
        return Ok(());
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(FONT)
        .draw()
        .map_err(failed)
}

struct Bar {
    name: String,
    ratio: f64,
    system: System,
}

fn bars(comparison: &Comparison) -> Vec<Bar> {
    let rows = comparison.rows.iter();
    let rows = rows.filter(|row| row.clients == BAR_CLIENTS && row.value_bytes == BUDGET_VALUE_BYTES);
    let bar = |row: &Row| {
        let ratio = row.ratios.as_ref()?.server_cpu?;
        Some(Bar {
            name: format!("{}, {}", row.operation.name(), row.system.name()),
            ratio,
            system: row.system,
        })
    };
    rows.filter_map(bar).collect()
}

fn draw_bars(bars: &[Bar]) -> Result<String> {
    const NAME_WIDTH: i32 = 150;
    const HEIGHT: i32 = 26;
    const WIDTH: i32 = 560;
    let highest = bars.iter().map(|bar| bar.ratio).fold(1.0, f64::max);
    let scale = f64::from(WIDTH - NAME_WIDTH - 60) / highest;
    let height = HEIGHT * bars.len() as i32 + 16;
    picture((WIDTH as u32, height as u32), |area| {
        let one = NAME_WIDTH + scale as i32;
        for (number, bar) in bars.iter().enumerate() {
            let top = 8 + HEIGHT * number as i32;
            let (middle, end) = (top + HEIGHT / 2, NAME_WIDTH + (bar.ratio * scale) as i32);
            let body =
                Rectangle::new([(NAME_WIDTH, top + 4), (end, top + HEIGHT - 4)], color(bar.system).filled());
            area.draw(&body).map_err(failed)?;
            let style = |side| FONT.into_font().color(&BLACK).pos(Pos::new(side, VPos::Center));
            let name = Text::new(bar.name.clone(), (NAME_WIDTH - 8, middle), style(HPos::Right));
            area.draw(&name).map_err(failed)?;
            let figure = EmptyElement::at((end + 6, middle))
                + Text::new(format!("{:.2}", bar.ratio), (0, 0), style(HPos::Left));
            area.draw(&figure).map_err(failed)?;
        }
        area.draw(&PathElement::new([(one, 0), (one, height)], color(System::Etcd))).map_err(failed)
    })
}

fn picture(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    draw(&area)?;
    area.present().map_err(failed)?;
    drop(area);
    Ok(svg)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::Ratios;

    fn row(operation: Operation, clients: usize, system: System) -> Row {
        let ratios = || Ratios { per_second: Some(2.0), p99: Some(0.5), server_cpu: Some(0.37) };
        Row {
            operation,
            clients,
            value_bytes: BUDGET_VALUE_BYTES,
            system,
            per_second: 1_000.0,
            p50_us: 1.0,
            p99_us: 2.0,
            p999_us: 3.0,
            server_cpu_us: 40.0,
            written_bytes_per_operation: 0.0,
            resident_bytes: 0.0,
            failed: 0,
            disturbance: 0.0,
            ratios: (system != System::Etcd).then(ratios),
        }
    }

    fn files(rows: Vec<Row>) -> Vec<&'static str> {
        let plots = draw(&Comparison { etcd: String::new(), rows }).unwrap();
        plots.iter().map(|plot| plot.file).collect()
    }

    #[test]
    fn curves_need_two_numbers_of_clients_and_bars_those_that_they_are_about() {
        let both = |clients| SYSTEMS.map(|system| row(Operation::DurablePut, clients, system));
        assert_eq!(
            files(both(1).into_iter().chain(both(64)).collect()),
            ["durable-put.svg", "cpu-ratios.svg"]
        );
        assert_eq!(files(both(64).into_iter().collect()), ["cpu-ratios.svg"]);
        assert!(files(both(16).into_iter().collect()).is_empty());
        assert!(files(Vec::new()).is_empty());
    }

    #[test]
    fn a_plot_names_its_systems_and_figures() {
        let both = |clients| SYSTEMS.map(|system| row(Operation::Get, clients, system));
        let rows = both(1).into_iter().chain(both(64)).collect();
        let plots = draw(&Comparison { etcd: String::new(), rows }).unwrap();
        for (plot, texts) in plots.iter().zip([&["etcd", "calls", "stream", "clients"][..], &["0.37"]]) {
            assert!(plot.svg.starts_with("<svg") && plot.svg.trim_end().ends_with("</svg>"));
            texts.iter().for_each(|text| assert!(plot.svg.contains(text), "{text} in {}", plot.file));
        }
    }
}
