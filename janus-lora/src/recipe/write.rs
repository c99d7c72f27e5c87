//! A recipe as TOML.

use super::adapter::AdapterSection;
use super::schema::Section;
use super::types::{
    BaseSection, DataLimits, DataSection, DynamicSection, MifsSection, OutputSection, Recipe, Stage, StageSection,
    TrainSection,
};
use super::value::{Overrides, heading};

/// The resolved recipe with every key that has a value, as it is written into a run folder. Reading it gives an equal recipe.
pub fn to_toml(recipe: &Recipe) -> String {
    let mut out = String::new();
    let mut section = |section: Section, write: &dyn Fn(&mut String)| {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&heading(&section));
        out.push('\n');
        write(&mut out);
    };
    section(BaseSection::SECTION, &|out| recipe.base.write(out));
    section(AdapterSection::SECTION, &|out| recipe.adapter.write_own(out));
    for data in &recipe.data {
        section(DataSection::SECTION, &|out| data.write(out));
    }
    section(DataLimits::SECTION, &|out| recipe.data_limits.write(out));
    section(TrainSection::SECTION, &|out| recipe.train.write(out));
    if let Some(dynamic) = &recipe.dynamic {
        section(DynamicSection::SECTION, &|out| dynamic.write(out));
    }
    if let Some(mifs) = &recipe.mifs {
        section(MifsSection::SECTION, &|out| mifs.write(out));
    }
    section(OutputSection::SECTION, &|out| recipe.output.write(out));
    for stage in &recipe.stages {
        write_stage(stage, &mut out);
    }
    out
}

/// A stage with every key of the sections that hold in it.
fn write_stage(stage: &Stage, out: &mut String) {
    let Stage { name, recipe } = stage;
    let own = StageSection {
        name: name.clone(),
        steps: recipe.train.steps.unwrap_or(1),
        data: Some(recipe.data.iter().map(|table| table.name.clone()).collect()),
        adapter: Overrides,
        train: Overrides,
        dynamic: Overrides,
        mifs: Overrides,
    };
    let mut section = |name: &str, write: &dyn Fn(&mut String)| {
        out.push_str(&format!("\n{name}\n"));
        write(out);
    };
    section("[[stage]]", &|out| own.write(out));
    let adapter = AdapterSection { start_from: None, ..recipe.adapter.clone() };
    section("[stage.adapter]", &|out| adapter.write_own(out));
    let train = TrainSection { steps: None, epochs: None, ..recipe.train.clone() };
    section("[stage.train]", &|out| train.write(out));
    if let Some(dynamic) = &recipe.dynamic {
        section("[stage.dynamic]", &|out| dynamic.write(out));
    }
    if let Some(mifs) = &recipe.mifs {
        section("[stage.mifs]", &|out| mifs.write(out));
    }
}
