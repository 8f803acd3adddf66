"""The page of one network: its controls on the left and its charts on the right."""

import marimo

app = marimo.App(width="full", app_title="ddln explore")


@app.cell
def _():
    from urllib.parse import urlencode

    import marimo as mo

    from ddln.config.experiment import load
    from ddln.plotting.explorer import network_controls, network_view, server
    from ddln.plotting.html import element

    return server, element, network_controls, load, mo, urlencode, network_view


@app.cell
def _(server, network_controls, load, mo):
    _config, *_overrides = server.subject()
    base = network_controls.initial_state(load(_config, _overrides))
    address = mo.query_params()
    try:
        first, address_error = network_controls.from_query(base, address.to_dict()), ""
    except ValueError as _error:
        first, address_error = base, str(_error)
    moved = {control.name: control.value for control in network_controls.controls(first)}
    get_kept, set_kept = mo.state({})
    latest = {}
    return address, base, first, get_kept, latest, moved, address_error, set_kept


@app.cell
def _(network_controls, first, mo):
    kinds = mo.ui.dictionary(
        {
            table: mo.ui.dropdown(
                network_controls.choices(first, table),
                network_controls.kind_of(first, table),
                label=table,
                full_width=True,
            )
            for table in network_controls.TABLES
        }
    )
    return (kinds,)


@app.cell
def _(network_controls, first, kinds, mo, moved):
    try:
        chosen, kinds_error = network_controls.with_kinds(first, kinds.value), ""
    except ValueError as _error:
        chosen, kinds_error = first, str(_error)
    _controls = network_controls.controls(chosen)
    _before = {c.name: moved[c.name] for c in _controls if moved.get(c.name) in c.steps}
    sliders = mo.ui.dictionary(
        {
            control.name: mo.ui.slider(
                steps=list(control.steps),
                value=_before.get(control.name, control.value),
                debounce=True,
                show_value=True,
                full_width=True,
                label=control.name.rpartition(".")[2].replace("_", " "),
            )
            for control in _controls
        }
    )
    _panel = []
    for _table in network_controls.TABLES:
        _prefix = _table.partition(".")[0] + "."
        _own = [slider for name, slider in sliders.elements.items() if name.startswith(_prefix)]
        _panel.append(mo.vstack([kinds[_table], *_own]))
    # Shown by the cell that creates them: another cell would redraw them at every change.
    mo.sidebar(mo.vstack(_panel, gap=1.2), width="17rem")
    return chosen, sliders, kinds_error


@app.cell
def _(latest, mo, set_kept, urlencode):
    def _keep(_):
        name = urlencode(latest["query"]) or "as configured"
        set_kept(lambda kept: dict([*kept.items(), (name, latest["view"])][-3:]))

    keep = mo.ui.button(
        label="Keep", on_click=_keep, tooltip="draw this curve beside the next ones"
    )
    forget = mo.ui.button(label="Forget", on_click=lambda _: set_kept({}))
    coordinate = mo.ui.number(1, 1000, value=1, label="coordinate k")
    _row = mo.hstack([keep, forget, coordinate], justify="start", gap=1)
    _row.style({"padding-top": "1.5rem"})  # below the buttons of a narrow page
    return (coordinate,)


@app.cell
def _(coordinate, run_error, get_kept, mo, address_error, kinds_error, view, network_view):
    _errors = [text for text in (address_error, kinds_error, run_error) if text]
    _shown = [mo.callout(mo.plain_text(text), kind="danger") for text in _errors]
    if view is not None:
        _shown.append(mo.Html(network_view.overview(view, (coordinate.value or 1) - 1, get_kept())))
    mo.vstack(_shown, gap=1)
    return


@app.cell
def _(element, mo, state, state_query, urlencode):
    _config = mo.download(
        (state.to_toml() if state else "").encode(),
        filename="explore.toml",
        mimetype="application/toml",
        label="Config as TOML",
        disabled=state is None,
    )
    _attributes = {"id": "link", "style": "overflow-wrap: anywhere"}
    _link = mo.Html(element("code", f"?{urlencode(state_query)}", _attributes))
    mo.hstack([_config, _link], justify="start", align="center", gap=1)
    return


@app.cell
def _(address, base, chosen, network_controls, latest, mo, moved, sliders):
    moved.update(sliders.value)
    view, state, state_query, run_error = None, None, {}, ""
    try:
        state = network_controls.with_values(chosen, sliders.value)
        with mo.status.spinner("computing; a new shape is compiled first", remove_on_exit=True):
            view = network_controls.run_state(state)
    except ValueError as _error:
        run_error = str(_error)
    if state is not None:
        state_query = network_controls.to_query(base, state)
        _own = [n for n in address.to_dict() if n in network_controls.TABLES or "." in n]
        for _name in set(_own) - {*state_query}:
            address.remove(_name)
        for _name, _value in state_query.items():
            address[_name] = _value
    if view is not None:
        latest.update(view=view, query=state_query)
    return run_error, state, state_query, view


if __name__ == "__main__":
    app.run()
