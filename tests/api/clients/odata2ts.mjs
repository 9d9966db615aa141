// odata2ts: the client that it generates from $metadata.
import { createRequire } from "node:module";
import fetching from "@odata2ts/http-client-fetch";

const { CloudMigrationService } = createRequire(import.meta.url)("./odata2ts/CloudMigrationService.js");
const { BASE, TOKEN, COMPANY, RUN } = process.env;
const http = new fetching.FetchClient({ headers: { Authorization: `Bearer ${TOKEN}` } });
const service = new CloudMigrationService(http, BASE);
const [company] = (await service.companies().query((builder, q) => builder.filter(q.name.startsWith("CRON")))).data.value;
const runs = service.companies(company.id).cloudMigrationStatus();
const found = { pages: [] };

found.newest = (await runs.query((builder, q) => builder.orderBy(q.startTime.desc()).top(1))).data.value[0].id;
found.filtered = (await runs.query((builder, q) => builder.filter(q.status.eq("Failed").or(q.tablesFailed.gt(1)))))
  .data.value.map((row) => row.runId);
found.expanded = (await service.cloudMigrationStatus(RUN).query((builder) => builder.expanding("cloudMigrationStatusDetails", (inner) => inner.top(9))))
  .data.cloudMigrationStatusDetails.map((row) => row.tableName);
for (let page = (await runs.query()).data; page;) {
  found.pages.push(...page.value.map((row) => row.runId));
  page = page["@odata.nextLink"] && (await http.get(page["@odata.nextLink"])).data;
}
const anyTag = { headers: { "If-Match": "*" } };
found.patched = (await service.cloudMigrationCompanies(COMPANY).patch({ replicate: true }, anyTag)).data.replicate;
found.action = (await service.cloudMigrationStatus(RUN).refreshStatus()).status;
console.log(JSON.stringify(found));
