"""The page of one network: controls on the left, pictures that follow them on the right."""

import marimo

app = marimo.App(width="full", app_title="ddln explore")


@app.cell
def _():
    from urllib.parse import urlencode

    import marimo as mo

    from ddln import apps, explorer, views
    from ddln.config import load
    from ddln.markup import element

    return apps, element, explorer, load, mo, urlencode, views


@app.cell
def _(apps, explorer, load, mo):
    _config, *_overrides = apps.subject()
    base = explorer.begin(load(_config, _overrides))
    address = mo.query_params()
    try:
        first, refused = explorer.read(base, address.to_dict()), ""
    except ValueError as _error:
        first, refused = base, str(_error)
    moved = {control.name: control.value for control in explorer.controls(first)}
    get_kept, set_kept = mo.state({})
    return address, base, first, get_kept, moved, refused, set_kept


@app.cell
def _(explorer, first, mo):
    kinds = mo.ui.dictionary(
        {
            table: mo.ui.dropdown(
                explorer.choices(first, table),
                explorer.kind_of(first, table),
                label=table,
                full_width=True,
            )
            for table in explorer.TABLES
        }
    )
    return (kinds,)


@app.cell
def _(explorer, first, kinds, mo, moved):
    chosen = explorer.choose(first, kinds.value)
    sliders = mo.ui.dictionary(
        {
            control.name: mo.ui.slider(
                steps=list(control.steps),
                value=moved.get(control.name, control.value),
                debounce=True,
                show_value=True,
                full_width=True,
                label=control.name.rpartition(".")[2].replace("_", " "),
            )
            for control in explorer.controls(chosen)
        }
    )
    return chosen, sliders


@app.cell
def _(mo, view):
    coordinate = mo.ui.dropdown(
        {str(k + 1): k for k in range(view.width if view else 1)}, "1", label="coordinate k"
    )
    return (coordinate,)


@app.cell
def _(mo, set_kept, state_query, urlencode, view):
    def _keep(_):
        name = urlencode(state_query) or "as configured"
        set_kept(lambda kept: dict([*kept.items(), (name, view)][-3:]))

    keep = mo.ui.button(label="Keep", on_click=_keep, disabled=view is None)
    forget = mo.ui.button(label="Forget", on_click=lambda _: set_kept({}))
    return forget, keep


@app.cell
def _(element, forget, keep, kinds, mo, sliders, state, state_query, urlencode):
    _groups = [
        mo.vstack(
            [
                kinds[table],
                *[sliders[name] for name in sliders.elements if name.startswith(prefix)],
            ]
        )
        for table, prefix in (
            ("problem.data", "problem."),
            ("network.init", "network."),
            ("dynamics", "dynamics."),
        )
    ]
    _config = mo.download(
        (state.to_toml() if state else "").encode(),
        filename="explore.toml",
        mimetype="application/toml",
        label="Config as TOML",
        disabled=state is None,
    )
    _link = mo.Html(element("code", f"?{urlencode(state_query)}", {"id": "link"}))
    panel = mo.vstack(
        [*_groups, mo.hstack([keep, forget], justify="start"), _config, _link], gap=1.2
    )
    return (panel,)


@app.cell
def _(coordinate, fault, get_kept, mo, panel, refused, view, views):
    _told = [mo.callout(mo.plain_text(text), kind="danger") for text in (refused, fault) if text]
    if view is not None:
        _told += [coordinate, mo.Html(views.overview(view, coordinate.value, get_kept()))]
    mo.hstack([panel, mo.vstack(_told, gap=1)], widths=[1, 4], align="start", gap=2)
    return


@app.cell
def _(address, base, chosen, explorer, mo, moved, sliders):
    moved.update(sliders.value)
    view, state, state_query, fault = None, None, {}, ""
    try:
        state = explorer.move(chosen, sliders.value)
        with mo.status.spinner("computing; a new shape is compiled first", remove_on_exit=True):
            view = explorer.look(state)
    except ValueError as _error:
        fault = str(_error)
    if state is not None:
        state_query = explorer.query(base, state)
        for _name in [n for n in address.to_dict() if "." in n and n not in state_query]:
            address.remove(_name)
        for _name, _value in state_query.items():
            address[_name] = _value
    return fault, state, state_query, view


if __name__ == "__main__":
    app.run()
