// Shows what a node of this pack has to say in a read-only box on the node.
//
// A node's result carries {"text": [...]}, which the host sends to the editor that queued it, and
// {"choice": [...]} where the text is about a chosen file. Apply nodes have nothing to say before the
// sampler has run: what was applied comes as a message of its own. The text is kept in the node's
// properties, so that it is there again after a reload; it is no widget value and no input.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { ComfyWidgets } from "../../scripts/widgets.js"

const OURS = "CLDM_"
const PROPERTY = "cldm_text"
const CHOICE = "control_net_name"
const WIDTH = 320 // at which titles, and names and values of the inputs, can be read
const TRIES = 10

const ours = (node) => node.comfyClass?.startsWith(OURS)

function boxOf(node) {
    if (node.cldmBox) return node.cldmBox
    const spec = ["STRING", { multiline: true }]
    const box = ComfyWidgets.STRING(node, "text_shown", spec, app).widget
    box.serialize = false // not among the workflow's widgets_values
    box.options.serialize = false // nor among the prompt's inputs
    box.options.read_only = true
    box.element.readOnly = true
    box.label = "info"
    box.options.getMinHeight = () => heightOf(box.element, node.size[0])
    node.cldmBox = box
    return box
}

// The height of a text in a column of that width.
function heightOfText(text, width, font) {
    const copy = document.createElement("div")
    Object.assign(copy.style, {
        position: "absolute",
        visibility: "hidden",
        whiteSpace: "pre-wrap",
        overflowWrap: "break-word",
        width: `${width}px`,
        ...font,
    })
    copy.textContent = text
    document.body.append(copy)
    const height = copy.offsetHeight
    copy.remove()
    return height
}

// The height that a box's text needs in a node of that width; the box itself may be off the screen.
function heightOf(element, nodeWidth) {
    const style = getComputedStyle(element)
    const font = {
        fontFamily: style.fontFamily || "monospace",
        fontSize: style.fontSize || "10px",
        lineHeight: style.lineHeight || "normal",
    }
    const around = 46 // the box's margins and paddings, and a scroll bar
    return heightOfText(element.value, nodeWidth - around, font) + 28
}

// How many lines a text has in the box that Nodes 2.0 draw, which asks for rows and not for a height.
function rowsOf(text, nodeWidth) {
    const lines = { fontFamily: "monospace", fontSize: "12px", lineHeight: "16px" }
    return Math.ceil(heightOfText(text, nodeWidth - 64, lines) / 16)
}

function show(node, text) {
    const box = boxOf(node)
    box.hidden = box.options.hidden = !text
    box.options.rows = rowsOf(text, node.size[0])
    box.value = text
    if (text) node.properties[PROPERTY] = text
    else delete node.properties[PROPERTY]
    if (!text) return
    const [width, height] = node.computeSize()
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
    node.setDirtyCanvas(true, true)
}

function clear(node) {
    if (!node.properties[PROPERTY]) return
    const before = node.computeSize()[1]
    show(node, "")
    // What the text had taken is given back; what the user added to it stays.
    node.setSize([node.size[0], node.size[1] - before + node.computeSize()[1]])
    node.setDirtyCanvas(true, true)
}

function receive(node, output) {
    if (!output?.text) return
    const choice = node.widgets?.find((widget) => widget.name === CHOICE)
    // Another file may have been chosen since, or another graph be open.
    if (choice && output.choice && output.choice[0] !== choice.value) return
    show(node, [].concat(output.text).join("\n\n"))
}

// A node of the open graph; ids of nodes inside of subgraphs are paths, such as 12:3.
function find(id) {
    let graph = app.graph
    let node = null
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(Number.isNaN(Number(part)) ? part : Number(part))
        graph = node?.subgraph
    }
    return node
}

function receiveApplied({ detail }) {
    const node = find(detail.node)
    if (node && ours(node)) show(node, detail.text)
}

// The nodes of a graph and of its subgraphs, with the ids that the host knows them by.
function* nodesOf(graph, path = "") {
    for (const node of graph?._nodes ?? []) {
        yield [`${path}${node.id}`, node]
        yield* nodesOf(node.subgraph, `${path}${node.id}:`)
    }
}

// Older hosts send nothing for a node whose result they had already, but keep it in their history.
async function fillFromHistory(promptId) {
    const empty = [...nodesOf(app.graph)].filter(([, n]) => ours(n) && !n.properties[PROPERTY])
    for (let attempt = 0; empty.length && attempt < TRIES; attempt++) {
        const entry = (await (await api.fetchApi(`/history/${promptId}`)).json())[promptId]
        if (entry) {
            for (const [id, node] of empty) {
                if (!node.properties[PROPERTY]) receive(node, entry.outputs?.[id])
            }
            return
        }
        await new Promise((resolve) => setTimeout(resolve, 200)) // it is written after the end
    }
}

app.registerExtension({
    name: "CLDM.ShowText",

    setup() {
        api.addEventListener("cldm_applied", receiveApplied)
        api.addEventListener("execution_success", ({ detail }) => fillFromHistory(detail.prompt_id))
    },

    nodeCreated(node) {
        if (!ours(node)) return
        for (const widget of node.widgets ?? []) {
            const changed = widget.callback
            widget.callback = function (...args) {
                const answer = changed?.apply(this, args)
                clear(node) // the text was about another setting
                return answer
            }
        }
        const onExecuted = node.onExecuted
        node.onExecuted = function (output) {
            onExecuted?.apply(this, arguments)
            receive(this, output)
        }
        const onConfigure = node.onConfigure
        node.onConfigure = function (saved) {
            onConfigure?.apply(this, arguments)
            if (this.properties[PROPERTY]) show(this, this.properties[PROPERTY])
        }
        const size = node.computeSize()
        node.setSize([Math.max(size[0], WIDTH), size[1]])
    },
})
