// Search on pages opened as files, where browsers start no worker: the same script runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inner = frame.contentWindow
      this.inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      this.loaded = this.load(url)
      this.inner.importScripts = (...urls) => Promise.all(urls.map((each) => this.load(each)))
    }
    load(url) {
      return new Promise((done) => {
        const script = this.inner.document.createElement("script")
        script.src = url
        script.onload = done
        this.inner.document.body.append(script)
      })
    }
    postMessage(data) {
      this.loaded.then(() => this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data })))
    }
  }
}
