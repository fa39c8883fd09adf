// A plugin: adds bytecode to the functions' zip, if the Python they run on is installed here as well.

const { spawnSync } = require('child_process');
const path = require('path');

const SCRIPT = path.join(__dirname, 'bytecode.py');
const VERSION = 'import sys; print("python%d.%d" % sys.version_info[:2])';

const run = (python, ...args) => spawnSync(python, args, { encoding: 'utf8' });

module.exports = class Bytecode {
  constructor(serverless, options, { log, progress }) {
    Object.assign(this, { serverless, log, progress });
    this.hooks = { 'after:package:createDeploymentArtifacts': () => this.add() };
  }

  add() {
    const { runtime } = this.serverless.service.provider;
    const python = [runtime, 'python3'].find((each) => run(each, '-c', VERSION).stdout?.trim() === runtime);
    if (!python) {
      this.log.warning(`No ${runtime} here to compile with: the zip has no bytecode, and a cold start takes longer`);
      return;
    }
    const { artifact } = this.serverless.service.package;
    this.progress.get('bytecode').notice(`Compiling with ${python}`);
    const { status, stderr } = run(python, '-I', SCRIPT, artifact);
    this.progress.get('bytecode').remove();
    if (status !== 0) throw new this.serverless.classes.Error(`no bytecode for ${artifact}: ${stderr}`);
  }
};
