"""The page of a run folder: its sweep, one of its networks, and comparisons with other runs."""

import marimo

app = marimo.App(width="full", app_title="ddln explore")


@app.cell
def _():
    from pathlib import Path

    import marimo as mo

    from ddln.plotting.explorer import network_view, run_browser, server
    from ddln.plotting.html import element
    from ddln.sweeps.run_folder import RunFolder

    return Path, RunFolder, server, run_browser, element, mo, network_view


@app.cell
def _(Path, server, run_browser, mo):
    _path = Path(server.subject()[0]).absolute()
    root = _path.parent
    run = mo.ui.dropdown(
        sorted({*run_browser.runs(root), _path.name}), _path.name, label="run", full_width=True
    )
    get_kept, set_kept = mo.state({})
    latest = {}
    return get_kept, latest, root, run, set_kept


@app.cell
def _(RunFolder, run_browser, root, run):
    try:
        dataset, read_error = run_browser.read(RunFolder(root / run.value)), ""
        axes = run_browser.axes(dataset)
    except ValueError as _error:
        dataset, read_error, axes = None, str(_error), []
    return axes, dataset, read_error


@app.cell
def _(axes, run_browser, dataset, element, mo, run):
    indices = mo.ui.dictionary(
        {
            axis: mo.ui.slider(
                steps=list(range(dataset.sizes[axis])), debounce=True, full_width=True, label=axis
            )
            for axis in axes
        }
    )
    along = mo.ui.dropdown(axes, axes[0] if axes else None, label="along", full_width=True)
    over = mo.ui.dropdown(
        ["–", *axes], axes[1] if len(axes) > 1 else "–", label="a curve for each", full_width=True
    )
    _known = run_browser.quantities(dataset) if dataset is not None else []
    quantity = mo.ui.dropdown(_known, _known[0] if _known else None, label="drawn", full_width=True)
    _sweep = [mo.Html(element("b", "The sweep")), quantity, along, over]
    _lane = [mo.Html(element("b", "The network")), *indices.elements.values()]
    # Shown by the cell that creates them: another cell would redraw them at every change.
    mo.sidebar(mo.vstack([run, *(_sweep + _lane if axes else [])], gap=1.2), width="17rem")
    return along, over, indices, quantity


@app.cell
def _(run_browser, dataset, latest, indices, run, read_error, network_view):
    network_name, view, run_error = "", None, read_error
    if dataset is not None:
        network_name = run_browser.name_of(dataset, indices.value)
        try:
            view = network_view.view(run_browser.pick(dataset, indices.value))
        except ValueError as _error:
            run_error = str(_error)
        latest.update(name=f"{run.value}: {network_name}", view=view)
    return run_error, network_name, view


@app.cell
def _(latest, mo, set_kept):
    def _keep(_):
        set_kept(lambda kept: dict([*kept.items(), (latest["name"], latest["view"])][-3:]))

    keep = mo.ui.button(
        label="Keep", on_click=_keep, tooltip="compare this network with the next ones"
    )
    forget = mo.ui.button(label="Forget", on_click=lambda _: set_kept({}))
    coordinate = mo.ui.number(1, 100_000, value=1, label="coordinate k")
    _row = mo.hstack([keep, forget, coordinate], justify="start", gap=1)
    _row.style({"padding-top": "1.5rem"})  # below the buttons of a narrow page
    return (coordinate,)


@app.cell
def _(element, network_name, mo):
    mo.Html(str(element("code", network_name, {"id": "network"})))
    return


@app.cell
def _(along, run_browser, dataset, over, indices, quantity, network_view):
    sweep = ""
    if indices.elements:
        _by = None if over.value in ("–", along.value) else over.value
        _across = run_browser.across(dataset, quantity.value, along.value, _by, indices.value)
        _side = run_browser.side_by_side(dataset, _by or along.value, indices.value)
        sweep = network_view.grid({"across": _across, "side": _side})
    return (sweep,)


@app.cell
def _(run_browser, coordinate, element, run_error, get_kept, mo, sweep, view, network_view):
    _shown = [mo.callout(mo.plain_text(run_error), kind="danger")] if run_error else []
    _shown.append(mo.Html(sweep))
    if view is not None:
        _shown.append(mo.Html(network_view.overview(view, (coordinate.value or 1) - 1, get_kept())))
    if get_kept():
        _shown.append(mo.Html(element("div", run_browser.compare(get_kept()), {"id": "kept"})))
    mo.vstack(_shown, gap=1)
    return


if __name__ == "__main__":
    app.run()
