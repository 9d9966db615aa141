// odata2ts: the client that it generates from the $metadata of v2.0: Int64, null, parameters of an action.
import { createRequire } from "node:module";
import fetching from "@odata2ts/http-client-fetch";

const { MigrationV2Service } = createRequire(import.meta.url)("./odata2ts-v2/MigrationV2Service.js");
const { BASE, TOKEN, COMPANY, RUN } = process.env;
const http = new fetching.FetchClient({ headers: { Authorization: `Bearer ${TOKEN}` } });
const service = new MigrationV2Service(http, BASE);
const anyTag = { headers: { "If-Match": "*" } };
const found = { pages: [] };

for (let page = (await service.runs().query((builder, q) => builder.orderBy(q.startTime.desc()))).data; page;) {
  found.pages.push(...page.value.map((row) => row.runId));
  page = page["@odata.nextLink"] && (await http.get(page["@odata.nextLink"])).data;
}
const run = (await service.runs(RUN).query((builder) => builder.expanding("runTables", (inner, q) => inner.filter(q.recordsCopied.gt(15)))))
  .data;
found.expanded = run.runTables.map((row) => row.tableName);
found.unknown = run.runTables[0].targetRows;
found.patched = (await service.sourceCompanies(COMPANY).patch({ replicate: true }, anyTag)).data.replicate;
const begun = (await service.runs().create({ replicationType: "Diagnostic", companies: [], failedOnly: false })).data;
found.begun = begun.status;
found.cancelled = (await service.runs(begun.id).cancel({ reason: "only a test" })).status;
found.reason = (await service.runs(begun.id).query()).data.cancelled;
console.log(JSON.stringify(found));
