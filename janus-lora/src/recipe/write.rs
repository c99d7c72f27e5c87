//! A recipe as TOML.

use super::schema::Section;
use super::types::{
    AdapterSection, BaseSection, DataLimits, DataSection, DynamicSection, MifsSection, OutputSection, Recipe,
    TrainSection,
};
use super::value::heading;

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
    section(AdapterSection::SECTION, &|out| recipe.adapter.write(out));
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
    out
}
